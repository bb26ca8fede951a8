#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Mounts that write nothing leave no session. vda: squashfs, vdb: erofs, vdc: ext4, vdd: xfs.
# Copies from before go to /host/vdX.

. "$(dirname "$0")/lib.sh"
load
mkdir "$work/tree"
random 2 "$work/tree/file"
cp -r /etc "$work/tree"
mksquashfs "$work/tree" "$work/squashfs" -quiet -no-progress -comp gzip >/dev/null || die "mksquashfs"
mkfs.erofs --quiet "$work/erofs" "$work/tree" || die "mkfs.erofs"
dd if="$work/squashfs" of=/dev/vda bs=1M conv=fsync status=none
dd if="$work/erofs" of=/dev/vdb bs=1M conv=fsync status=none
make_fs ext4 /dev/vdc
make_fs xfs /dev/vdd
sync
# quiet NAME DEVICE TYPE OPTIONS
quiet() {
	copy "$2" "${2##*/}"
	activate "$2" || not_ok "$1: activate"
	mount -t "$3" -o "$4" "$2" /mnt || not_ok "$1: mount"
	is "$1: it is a session" recording "$(status devices.0.state "$2")"
	cat /mnt/file >/dev/null 2>&1
	ls -lR /mnt >/dev/null
	umount /mnt
	is "$1: over" 0 "$(status module.sessions)"
	is "$1: leaves nothing" 0 "$(list 'sessions.#' "$2")"
}
quiet "squashfs" /dev/vda squashfs ro
quiet "erofs" /dev/vdb erofs ro
quiet "ext4, read-only" /dev/vdc ext4 ro
quiet "xfs, read-only" /dev/vdd xfs ro,norecovery
is "the store holds no session at all" 0 "$(find /snapshot -mindepth 1 -maxdepth 1 -type d -name 'vd*' | wc -l)"
complete
