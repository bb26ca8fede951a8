#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# cut.sh before: a session on /dev/vda that ends with the machine, while much is being written.
# cut.sh after: on the same disks, back to its start.

. "$(dirname "$0")/lib.sh"
device=/dev/vda
case $1 in
before)
	load
	mkfs.ext4 -q $device
	mount $device /mnt
	random 30 /mnt/file
	umount /mnt
	sync
	copy $device start
	activate $device
	mount $device /mnt
	bdsnap-testtool work /mnt/work 1 2 &
	for i in 1 2 3; do
		dd if=/dev/urandom of=/mnt/file bs=64k seek=$((i * 150)) count=150 conv=notrunc oflag=direct status=none &
	done
	wait %2
	sync -f /host
	echo b >/proc/sysrq-trigger
	sleep 100
	;;
after)
	copy $device cut
	load
	is "the session" "interrupted" "$(column state $device)"
	atleast "it has saved something" 4096 "$(column saved_bytes $device)"
	try bdsnap verify --all
	is "verify" 0 $code
	try bdsnap-restore $device latest --yes
	is "nobody has watched the device since: refused" 5 $code
	try bdsnap-restore $device latest --yes --accept-gap
	[[ $code = [06] ]] || not_ok "restore: status $code"
	complete
	;;
esac
