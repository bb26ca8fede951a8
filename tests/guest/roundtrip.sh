#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# roundtrip.sh HOW FS...: two sessions on /dev/vda, /dev/vdb, ... with these file systems, then back
# to the second's start and to the first's. Copies go to /host/FS.0 (before both), FS.1, FS.2 (after
# both) and FS.back (the second's start restored). `image` is ext4 in a file of an ext4.

. "$(dirname "$0")/lib.sh"
how=$1
shift
load
letters=abcdefgh n=0

for fs; do
	began=$SECONDS
	disk=/dev/vd${letters:n++:1} mountpoint=$work/$fs
	mkdir "$mountpoint"
	device=$disk options=()
	case $fs in
	image)
		mkfs.ext4 -q "$disk"
		mkdir "$work/below"
		mount "$disk" "$work/below"
		device=$work/below/image.raw
		truncate -s 64M "$device"
		make_fs ext4 "$device"
		options=(-o loop)
		;;
	*) make_fs "$fs" "$device" ;;
	esac
	sync
	copy "$device" "$fs.0"
	case $how in
	syscall) activate --via syscall "$device" ;;
	*) activate --durability "$how" "$device" ;;
	esac || not_ok "$fs: activate"
	for session in 1 2; do
		mount "${options[@]}" "$device" "$mountpoint" || not_ok "$fs: mount"
		load_on "$mountpoint" $session
		umount "$mountpoint" || not_ok "$fs: umount"
		copy "$device" "$fs.$session"
	done
	is "$fs: two sessions, closed, no gap" "closed none closed none" "$(column state "$device" | cut -d ' ' -f 1) $(column gap_before "$device" | cut -d ' ' -f 1) $(column state "$device" | cut -d ' ' -f 2) $(column gap_before "$device" | cut -d ' ' -f 2)"
	read -r first second <<<"$(column saved_bytes "$device")"
	atleast "$fs: the first has saved something" 4096 "${first:-0}"
	atleast "$fs: the second has saved something" 4096 "${second:-0}"
	try bdsnap verify --all
	is "$fs: verify" 0 $code
	try bdsnap-restore "$device" latest --yes
	is "$fs: restore to the second session" 0 $code
	copy "$device" "$fs.back"
	try bdsnap-restore "$device" latest~1 --yes
	is "$fs: restore to the first session" 0 $code
	echo "$fs took $((SECONDS - began)) s"
done
bdsnap list
bdsnap status
complete
