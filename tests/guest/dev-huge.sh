#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-huge.sh make|session: xfs on a sparse disk, /dev/vda, of several TiB

. "$(dirname "$0")/lib.sh"
device=/dev/vda
case $1 in
make)
	mkfs.xfs -q -f -l size=64m $device || die "mkfs"
	printf 'near the end' | dd of=$device bs=1M seek=2900000 conv=notrunc,fsync status=none
	mount $device /mnt
	mkdir /mnt/{1..40}
	umount /mnt
	;;
session)
	load
	activate $device
	mount $device /mnt || not_ok "mount"
	load_on /mnt 1 2
	for i in $(seq 40); do
		dd if=/dev/urandom of="/mnt/$i/file" bs=10000 count=3 status=none
		mkdir "/mnt/new$i"
	done
	# Free space, beyond what 32 bits of sectors and 31 bits of KiB can say
	printf 'overwritten!' | dd of=$device bs=1M seek=2900000 conv=notrunc,fsync status=none
	umount /mnt
	is "the session" "mount closed" "$(last kind) $(last state)"
	is "a write beyond 2 TiB" "overwritten!" "$(dd if=$device bs=1M skip=2900000 count=1 iflag=direct status=none | head -c 12)"
	bdsnap status $device
	atmost "the memory that knows what is saved" $((16 << 20)) "$(status devices.0.saved_set_bytes $device)"
	try bdsnap-restore $device latest --yes
	is "restore" 0 $code
	is "the write beyond 2 TiB" "near the end" "$(dd if=$device bs=1M skip=2900000 count=1 iflag=direct status=none | head -c 12)"
	;;
esac
complete
