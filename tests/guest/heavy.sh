#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# heavy.sh HOW: much to save in little memory, at many places at once, on /dev/vda (file system) and
# /dev/vdb (file system, whose writes are checked by fio).

. "$(dirname "$0")/lib.sh"
how=$1
load mem_limit_mib=2
for device in /dev/vda /dev/vdb; do
	make_fs ext4 $device
	mount $device /mnt
	random 40 /mnt/file
	umount /mnt
	sync
	copy $device ${device##*/}
	activate --durability "$how" $device
done
mkdir "$work/a" "$work/b"
mount /dev/vda "$work/a"
mount /dev/vdb "$work/b"
fio --name=verified --filename="$work/b/file" --size=40M --ioengine=io_uring --direct=1 --rw=randwrite --bs=4k --iodepth=32 \
	--io_size=12M --verify=crc32c --verify_fatal=1 --randseed=7 --output="$work/fio" &
fio=$!
for i in 1 2 3; do
	dd if=/dev/urandom of="$work/a/file" bs=1M seek=$((i * 10)) count=10 conv=notrunc oflag=direct status=none &
	writers[i]=$!
done
dd if=/dev/urandom of="$work/a/more" bs=1M count=10 conv=fsync status=none || not_ok "buffered writes"
for i in 1 2 3; do wait ${writers[i]} || not_ok "direct writes"; done
wait $fio
code=$?
[ $code = 0 ] || cat "$work/fio"
is "$how: fio finds what it wrote" 0 $code
umount "$work/a"
umount "$work/b"
bdsnap status
peak=$(status module.memory_peak_bytes)
atmost "$how: memory (of 2 MiB, and one for each of two sessions)" $((4 << 20)) "$peak"
atleast "$how: it was used" 65536 "$peak"
for device in /dev/vda /dev/vdb; do
	is "$how, $device: the session" closed "$(column state $device)"
	try bdsnap-restore $device latest --yes
	is "$how, $device: restore" 0 $code
done
complete
