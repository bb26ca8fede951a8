#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Loading and unloading; partitions, large blocks, odd ends; what is not a plain write. NAME.a and
# NAME.b in /host must be equal. vda and vdb 64M, vdc 64M with blocks of 4 KiB, vdd 64M and 512 bytes.

. "$(dirname "$0")/lib.sh"

# light DEVICE [SEED]: a session
light() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "${2:-1}" 1 || not_ok "$1: load"
	umount /mnt
}
# back NAME DEVICE SESSION...
back() {
	local name=$1 file=${1//[^a-z0-9]/-}
	shift
	try bdsnap-restore "$@" --yes
	is "$name: restore" 0 $code
	copy "$1" "$file.b"
}
before() { copy "$2" "${1//[^a-z0-9]/-}.a"; }

# ---- Unloading ----

load
make_fs ext4 /dev/vda
sync
activate /dev/vda
mount /dev/vda /mnt
random 1 /mnt/file
try rmmod bdsnap
is "rmmod during a session" 1 $code
is "because of EBUSY" 1 "$(echo "$out" | grep -cE 'in use|busy')"
try deactivate /dev/vda
is "deactivation during a session" 0 $code
is "it goes on" 1 "$(status module.sessions)"
random 1 /mnt/file
umount /mnt
is "to its end" closed "$(column state /dev/vda)"
is "and is forgotten" 0 "$(status 'devices.#')"
exec 5<>/dev/bdsnap
try rmmod bdsnap
is "rmmod while /dev/bdsnap is open" 1 $code
exec 5>&-

# ---- Partitions ----

printf 'label: dos\n2048,40000\n,\n' | sfdisk -q /dev/vdb
partprobe /dev/vdb 2>/dev/null
for part in /dev/vdb1 /dev/vdb2; do make_fs ext4 $part; done
sync
activate /dev/vdb2
before "a partition" /dev/vdb
light /dev/vdb2
light /dev/vdb1
is "a partition: its own session" 1 "$(column name /dev/vdb2 | wc -w)"
try bdsnap-restore /dev/vdb2 latest --yes
is "a partition: restore" 0 $code
make_fs ext4 /dev/vdb1 # Was not registered
sync
copy /dev/vdb2 a-partition-2
cat /sys/class/block/vdb2/{start,size} >/host/where
deactivate /dev/vdb2

activate /dev/vdb
before "a whole disk" /dev/vdb
mkdir "$work/1" "$work/2"
mount /dev/vdb1 "$work/1"
random 1 "$work/1/file"
mount /dev/vdb2 "$work/2"
random 1 "$work/2/file"
umount "$work/1"
is "a whole disk: one session for two partitions" 1 "$(status module.sessions)"
random 1 "$work/2/file2"
umount "$work/2"
is "a whole disk: over after the last" 0 "$(status module.sessions)"
is "a whole disk: one in the store" "closed" "$(list sessions.1.state /dev/vdb 2>/dev/null || column state /dev/vdb)"
back "a whole disk" /dev/vdb latest
deactivate /dev/vdb

# ---- Large blocks ----

make_fs ext4 /dev/vdc
sync
activate /dev/vdc
before "blocks of 4 KiB" /dev/vdc
light /dev/vdc
back "blocks of 4 KiB" /dev/vdc latest

# ---- An odd end, and raw writes during a session ----

size=$(blockdev --getsize64 /dev/vdd)
is "a disk with an odd end" $((64 * 1048576 + 512)) "$size"
mkfs.ext4 -q -F /dev/vdd 64M
printf 'the last sector' | dd of=/dev/vdd bs=512 seek=131072 conv=notrunc,fsync status=none
activate /dev/vdd
dd if=/dev/vdd of=/host/an-odd-end.a bs=1M status=none
mount /dev/vdd /mnt
random 1 /mnt/file
printf 'overwritten' | dd of=/dev/vdd bs=512 seek=131072 conv=notrunc,fsync status=none
umount /mnt
is "an odd end: the last sector has changed" overwritten "$(dd if=/dev/vdd bs=512 skip=131072 status=none | head -c 11)"
try bdsnap-restore /dev/vdd latest --yes
is "an odd end: restore" 0 $code
sync

# ---- Discards and zeroes, as ioctls of the device and by file systems ----

random 20 "$work/random"
dd if="$work/random" of=/dev/vdc bs=1M oflag=direct status=none
make_fs ext4 /dev/vda
dd if="$work/random" of=/dev/vda bs=1M seek=40 oflag=direct status=none
sync
activate /dev/vda
before "discards" /dev/vda
mount /dev/vda /mnt
fstrim -v /mnt
atleast "discards: absorbed" $((10 << 20)) "$(status devices.0.absorbed_bytes /dev/vda)"
copy /dev/vda discards-absorbed
bdsnap-testtool work /mnt/work 5 1
rm -r /mnt/work
fstrim -v /mnt
blkdiscard -f -z -o $((40 << 20)) -l $((7 << 20)) /dev/vda || not_ok "write-zeroes"
blkdiscard -f -o $((48 << 20)) -l $((4 << 20)) /dev/vda || not_ok "discard"
umount /mnt
back "discards" /dev/vda latest

# ---- Loading and unloading, again and again ----

rmmod bdsnap || not_ok "rmmod with registrations"

# Discards that are passed: whoever loses something by them says so.
load discard=2
activate /dev/vdb
activate /dev/vdb2
mount /dev/vdb2 /mnt || not_ok "mount"
fstrim /mnt
random 1 /mnt/file
umount /mnt
is "a discard that passed: the partition's session says so" tainted "$(last state /dev/vdb2)"
is "and so does the disk's" tainted "$(last state /dev/vdb)"
deactivate /dev/vdb2
deactivate /dev/vdb
rmmod bdsnap || not_ok "rmmod"

for i in 1 2 3 4 5 6 7 8 9 10; do
	load
	activate /dev/vda
	activate /dev/vdc
	dd if=/dev/vdb of=/dev/null bs=64k iflag=direct status=none &
	mount /dev/vda /mnt
	random 1 /mnt/again
	umount /mnt
	[ "$(column state /dev/vda | tr ' ' '\n' | tail -n 1)" = closed ] || not_ok "load $i: session"
	rmmod bdsnap || not_ok "load $i: rmmod"
	wait
done
ok "ten loads"
load
bdsnap list
complete
