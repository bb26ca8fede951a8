#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# ahead.sh HOW: what a sequential writer will reach is saved before it comes. /dev/vda is the device, with 2 MiB in
# its middle that cannot be read.

. "$(dirname "$0")/lib.sh"
how=$1
mib=$((1 << 20))

total=$(blockdev --getsz /dev/vda)
dmsetup create device <<-END
	0 $((64 * 2048)) linear /dev/vda 0
	$((64 * 2048)) 4096 error
	$((66 * 2048)) $((total - 66 * 2048)) linear /dev/vda $((66 * 2048))
END
dmsetup mknodes
device=/dev/mapper/device
random 96 /dev/vda
# Only of what is mounted: else nobody keeps a device for what is read ahead. Nearly all of it lies behind the file system.
mkfs.ext4 -q -b 1024 -O ^has_journal $device 1M || die "mkfs"
sync
# the_end: ends the session; says kind, state and how many MiB more than $1 were saved
the_end() {
	umount /mnt || not_ok "umount"
	echo "$(last state $device) $((($(last saved_bytes $device) - $1 * mib) / mib))"
}
# write FIRST COUNT: MiB, one after the other; stream: in a session
write() { dd if=/dev/urandom of=$device bs=1M seek="$1" count="$2" oflag=direct conv=notrunc status=none; }
stream() {
	begin
	write "$1" "$2"
}
begin() { mountpoint -q /mnt || mount $device /mnt || not_ok "mount"; }

load mem_limit_mib=64
copy /dev/vda a.before
activate --durability "$how" $device
stream 4 3
is "$how: three MiB are no stream" "closed 0" "$(the_end 3)"
stream 10 16
read -r state more <<<"$(the_end 16)"
is "$how: a stream" closed "$state"
atleast "$how: was read ahead of (MiB)" 4 "$more"
atmost "$how: no further than half of it (MiB)" 8 "$more"
atmost "$how: in not too much memory" $((65 * mib)) "$(status module.memory_peak_bytes)"

# What cannot be read lies ahead; nobody needs it.
stream 44 20
read -r state more <<<"$(the_end 20)"
is "$how: a stream that ends before a bad place" closed "$state"
atleast "$how: what is beyond it was read (MiB)" 1 "$more"
# Behind it, mixed with what comes in no order.
begin
stream 66 20 &
writer=$!
fio --name=mixed --filename=$device --ioengine=libaio --iodepth=8 --direct=1 --rw=randwrite --bsrange=4k-256k --offset=2m --size=60m \
	--io_size=12m --randseed=5 --output=/dev/null || not_ok "$how: writes in no order"
wait $writer || not_ok "$how: the stream"
is "$how: with others beside it" closed "$(the_end 20 | cut -d ' ' -f 1)"
for n in 3 2 1 0; do
	try bdsnap-restore $device "latest~$n" --yes --no-undo --accept-gap
	[ $code = 0 ] && break
done
is "$how: restored" "0 3" "$code $n"
copy /dev/vda a.after

# Whoever needs it learns that it cannot be had.
begin
dd if=/dev/urandom of=$device bs=4k seek=$((64 * 256 + 1)) count=1 oflag=direct conv=notrunc status=none && not_ok "a bad place was written"
umount /mnt || not_ok "umount"
is "$how: a write to the bad place" "broken 5" "$(last state $device) $(last errno $device)"

deactivate $device
rmmod bdsnap || not_ok "rmmod"
load read_ahead_kib=0
activate --durability "$how" $device
stream 10 24
is "$how: switched off" "closed 0" "$(the_end 24)"
deactivate $device
rmmod bdsnap || not_ok "rmmod"

# What nobody needs yet must not be what fills the store.
free=$(($(stat -f -c '%a * %S' /snapshot) / mib))
load min_free_mib=$((free - 60))
activate --durability "$how" $device
stream 10 1
sleep 1 # In async it is the writer that finds out.
stream 11 23
is "$how: into a store that is nearly full" "closed 0" "$(the_end 24)"
deactivate $device
rmmod bdsnap || not_ok "rmmod"

# Large batches take no page cache, unless it is to take a burst.
load
activate --durability "$how" $device
stream 10 24
the_end 24
cached=$(($(fincore --bytes --noheadings --output RES "/snapshot/$(last name $device)/blocks.dat") / mib))
case $how in
strict) atmost "$how: of the store in memory (MiB)" 8 $cached ;;
async) atleast "$how: of the store in memory (MiB)" 20 $cached ;;
esac

# What the store has not taken yet when the device is given back is looked at as well by the next session.
if [ $how = async ]; then
	stream 20 1
	sleep 1
	fsfreeze --freeze /snapshot
	stream 50 1
	the_end 2 &
	sleep 2
	fsfreeze --unfreeze /snapshot
	wait $!
	is "$how: ends while the store hangs" closed "$(last state $device)"
	deactivate $device
	write 50 1
	activate --durability "$how" $device
	stream 80 1
	the_end 1
	is "$how: and its last write is changed elsewhere: told" written "$(last gap_before $device)"
fi
complete
