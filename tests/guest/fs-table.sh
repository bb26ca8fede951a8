# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The file systems of the cases fs-*, for both the host and the guest. Sourced.

# fs_disks KIND: the sizes of the disks that it needs
fs_disks() {
	case $1 in
	xfs | xfs-1k) echo 320M ;; # its mkfs wants 300 MiB
	xfs-log) echo 320M 80M ;;
	ext4-journal) echo 64M 16M ;;
	btrfs) echo 128M ;;
	btrfs-two) echo 128M 128M ;;
	f2fs) echo 128M ;;
	nilfs2) echo 144M ;;
	*) echo 64M ;;
	esac
}
# fs_type KIND: as mount calls it
fs_type() { echo "${1%%-*}"; }
# make_fs KIND DISK...
make_fs() {
	case $1 in
	ext2) mkfs.ext2 -q -F -b 1024 "$2" ;;
	ext3) mkfs.ext3 -q -F -b 4096 "$2" ;;
	ext4) mkfs.ext4 -q -F "$2" ;;
	ext4-1k) mkfs.ext4 -q -F -b 1024 "$2" ;;
	ext4-bigalloc) mkfs.ext4 -q -F -b 4096 -O bigalloc -C 16384 "$2" ;;
	ext4-journal)
		mke2fs -q -F -b 4096 -O journal_dev "$3"
		mkfs.ext4 -q -F -b 4096 -J device="$3" "$2"
		;;
	xfs) mkfs.xfs -q -f "$2" ;;
	xfs-1k) mkfs.xfs -q -f -b size=1024 "$2" ;;
	xfs-log) mkfs.xfs -q -f -l logdev="$3" "$2" ;;
	btrfs) mkfs.btrfs -q -f "$2" ;;
	btrfs-two) mkfs.btrfs -q -f -d raid1 -m raid1 "$2" "$3" ;;
	vfat) mkfs.vfat -F 32 "$2" >/dev/null ;;
	exfat) mkfs.exfat -q "$2" >/dev/null ;;
	f2fs) mkfs.f2fs -q -f "$2" >/dev/null ;;
	nilfs2) mkfs.nilfs2 -q -f "$2" ;;
	minix) mkfs.minix -3 "$2" >/dev/null ;;
	bfs) mkfs.bfs "$2" >/dev/null ;;
	ntfs) mkntfs -q -Q -F "$2" >/dev/null ;;
	udf) mkudffs --media-type=hd "$2" >/dev/null ;;
	jfs) mkfs.jfs -q "$2" >/dev/null ;;
	*) false ;;
	esac
}
# fs_mount KIND FOLDER DISK...: without mount's helpers, one of which would start nilfs2's cleaner
fs_mount() {
	local kind=$1 folder=$2 options=rw
	shift 2
	case $kind in
	xfs-log) options=logdev=$2 ;;
	btrfs-two) btrfs device scan "$@" >/dev/null ;;
	esac
	mount -i -t "$(fs_type "$kind")" -o $options "$1" "$folder"
}
