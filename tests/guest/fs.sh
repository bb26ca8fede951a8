#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# fs.sh KIND...: two sessions on each of these file systems, of one or more disks, and back to the
# first one's start. Copies go to /host/KIND.N.0, .1 (between) and .2, with N the disk's place;
# what a file system lacks goes to /host/lacks.

. "$(dirname "$0")/lib.sh"
load
# flat_load FOLDER SEED: for file systems without folders
flat_load() {
	local i
	for i in 1 2 3 4; do
		dd if=/dev/urandom of="$1/file$i" bs=3000 count=$((50 * i)) conv=notrunc status=none || not_ok "$1: write"
	done
	printf "seed %s" "$2" | dd of="$1/file2" bs=1 seek=12345 conv=notrunc status=none || not_ok "$1: overwrite"
	mv "$1/file1" "$1/moved$2" || not_ok "$1: rename"
	rm "$1/file3" || not_ok "$1: remove"
	sync
	printf "%s\n" folders fsync >"$work/lacks"
}
letters=abcdefghijklm next=0
: >/host/lacks

for kind; do
	began=$SECONDS
	folder=$work/$kind
	mkdir "$folder"
	disks=()
	for _ in $(fs_disks "$kind"); do disks+=("/dev/vd${letters:next++:1}"); done
	# copies WHEN: of all its disks
	copies() { for i in "${!disks[@]}"; do copy "${disks[i]}" "$kind.$i.$1"; done; }

	make_fs "$kind" "${disks[@]}" || die "$kind: mkfs"
	sync
	copies 0
	for disk in "${disks[@]}"; do activate "$disk" || not_ok "$kind: activate"; done
	: >"$work/all"
	for session in 1 2; do
		fs_mount "$kind" "$folder" "${disks[@]}" || die "$kind: mount"
		case $kind in
		bfs) flat_load "$folder" $session ;;
		*) load_on "$folder" $session 2 ;;
		esac
		cat "$work/lacks" >>"$work/all"
		umount "$folder" || not_ok "$kind: umount"
		copies $session
	done
	sort -u "$work/all" | while read -r lack; do
		skip "$kind: $lack"
		echo "$kind $lack" >>/host/lacks
	done
	alone=()
	[ ${#disks[@]} = 1 ] || alone=(--alone)
	for disk in "${disks[@]}"; do
		is "$kind, $disk: two sessions, closed, no gap" "closed closed none none" "$(column state "$disk") $(column gap_before "$disk")"
		try bdsnap-restore "$disk" latest~1 --yes ${alone[@]+"${alone[@]}"}
		is "$kind, $disk: restore" 0 $code
	done
	echo "$kind took $((SECONDS - began)) s"
done
try bdsnap verify --all
is "verify" 0 $code
complete
