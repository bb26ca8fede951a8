#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# instructions.sh: in a guest whose clock counts instructions, what a write of 4 KiB costs more because of
# the hooks: of a device that is not registered, and of what is saved already. What the first write to a
# chunk costs in strict. And what store and memory have to hold for what was saved.

. "$(dirname "$0")/../guest/lib.sh"
mount -t configfs configfs /sys/kernel/config
modprobe null_blk nr_devices=0
# Disks that complete what is sent to them at once, in the submitter's context. The store is on one, too:
# while this guest waits for the host its clock runs away, and with it the module's time limits.
for name in fast=256 other=8 store=256; do
	d=/sys/kernel/config/nullb/${name%=*}
	mkdir $d
	for set in memory_backed=1 size=${name#*=} blocksize=4096 irqmode=0 power=1; do echo "${set#*=}" >$d/${set%=*}; done
done
mkfs.ext4 -q -F /dev/store
mount -o noatime /dev/store /snapshot
chmod 700 /snapshot
load min_free_mib=16
n=1000 from=$((128 << 20))
# A file system on half of it, so that it can be claimed and yet written as we please
mkfs.ext4 -q -F /dev/fast 64M
# cost: nanoseconds, and so instructions, that one write takes: the least of three series, the others of
# which had more to do with the timer
cost() {
	local i least=999999999 ns
	# Until nothing else has anything to do; it takes no time.
	sync
	sleep 10
	for i in 1 2 3; do
		ns=$(bdsnap-bench writes /dev/fast $from 4096 $n)
		[ "$ns" -ge $least ] || least=$ns
	done
	echo $least
}
mount /dev/fast /mnt
cost >/dev/null
plain=$(cost)
activate /dev/other
unregistered=$(cost)
umount /mnt
# What is overwritten, and what is read ahead behind it: zeros would cost no data, and what was written until
# here is all alike.
dd if=/dev/urandom of=/dev/fast bs=1M count=16 seek=$((from >> 20)) oflag=direct status=none
activate /dev/fast
mount /dev/fast /mnt
first=$(bdsnap-bench writes /dev/fast $from 4096 $n)
saved=$(cost)
set=$(status devices.0.saved_set_bytes /dev/fast)
umount /mnt
session=$(echo /snapshot/fast_*Z)
deactivate /dev/fast
mount /dev/fast /mnt
again=$(cost)
umount /mnt
bytes=$(list sessions.0.saved_bytes)
stored=$(($(stat -c %s "$session/blocks.dat") + $(stat -c %s "$session/blocks.map")))
echo "instructions a write: plain $plain, unregistered $unregistered, first $first, saved $saved, unregistered again $again"
atleast "the writes were seen" $((n * 4096)) "$bytes"
atmost "instructions that a write to an unregistered device costs more ($((unregistered - plain)))" 250 $((unregistered - plain))
atmost "instructions that a write to what is saved costs more ($((saved - plain)))" 400 $((saved - plain))
atleast "the hooks cost something, or this measures nothing" 10 $((saved - plain))
# A tenth more than the 103 000 that were measured on 1 December 2026.
atmost "instructions that a first write costs, in strict ($first)" 113000 "$first"
atleast "it costs more than one to what is saved, or nothing was saved" $((4 * saved)) "$first"
try bdsnap verify --all
is "what was saved verifies" 0 $code
# Each write a batch of its own: a run and a commit, 128 bytes of map for 4096 of data.
atmost "thousandths of a byte stored for each byte saved" 1040 $((stored * 1000 / bytes))
echo "memory that knows what is saved, of 256 MiB of which two parts of 128 were touched: $set"
atmost "its bytes, of 256 MiB touched" $((40 * 1024 / 4)) "$set"
complete
