#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-blocks.sh BYTES...: disks with logical blocks of so many bytes (vda, vdb, ...), then two of odd
# sizes (one ext4, one FAT). /host/blocks tells which the kernel has, and with which file systems.

. "$(dirname "$0")/lib.sh"
load
letters=abcdefghijklm next=0
: >/host/blocks

# format FS BYTES DEVICE: blocks as large as the device's, if these are larger than a page
format() {
	local options=()
	case $1 in
	ext4)
		[ "$2" -le 4096 ] || options=(-b "$2")
		mkfs.ext4 -q -F ${options[@]+"${options[@]}"} "$3" </dev/null
		;;
	xfs)
		[ "$2" -le 4096 ] || options=(-b size="$2")
		mkfs.xfs -q -f -s size="$2" ${options[@]+"${options[@]}"} "$3"
		;;
	esac
}
for bytes; do
	device=/dev/vd${letters:next++:1}
	is "logical blocks of $bytes bytes" "$bytes" "$(blockdev --getss $device)"
	for fs in ext4 xfs; do
		name=blocks-$bytes-$fs
		if ! { format $fs "$bytes" $device && mount $device /mnt && umount /mnt; } >"$work/said" 2>&1; then
			skip "$fs with blocks of $bytes bytes"
			continue
		fi
		sync
		echo "$bytes $fs" >>/host/blocks
		activate $device || not_ok "$name: activate"
		session_on $name $fs $device
		deactivate $device
	done
done

device=/dev/vd${letters:next++:1}
round odd ext4 $device
device=/dev/vd${letters:next++:1}
mkfs.vfat $device >/dev/null || not_ok "FAT: mkfs"
sync
activate $device
copy $device odd-fat.0
mount $device /mnt || not_ok "FAT: mount"
dd if=/dev/urandom of=/mnt/file bs=1000 count=900 status=none
# To the last sector, which no file system uses
dd if=/dev/urandom of=$device bs=512 seek=$(($(blockdev --getsz $device) - 1)) count=1 conv=notrunc status=none
umount /mnt
copy $device odd-fat.1
try bdsnap-restore $device latest --yes
is "FAT: restore" 0 $code
copy $device odd-fat.2
try bdsnap verify --all
is "verify" 0 $code
complete
