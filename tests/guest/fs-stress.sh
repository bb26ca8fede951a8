#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# fs-stress.sh [SECONDS]: two sessions of random operations on three file systems at a time, back to the second's start
# and to the first's. With SECONDS, stress-ng's filesystem class as well, each of it so long.

. "$(dirname "$0")/lib.sh"
# What stress-ng can't do in a folder on a disk, or does to the whole machine
skipped=bind-mount,fanotify,fsize,getdent,iomix,mount,quota,rawdev,ramfs,swap,umount,cd,dev,hdd,chroot,verity
declare -A fs=([/dev/vda]=ext4 [/dev/vdb]=xfs [/dev/vdc]=btrfs)
devices=(/dev/vda /dev/vdb /dev/vdc)

load
for device in "${devices[@]}"; do
	name=${fs[$device]}
	mkdir "$work/$name"
	make_fs "$name" "$device"
	mount -t "$name" "$device" "$work/$name"
	mkdir "$work/$name/ops"
	bdsnap-testtool ops "$work/$name/ops" 1 600
	umount "$work/$name"
	activate "$device"
done
for session in a b; do
	jobs=()
	for device in "${devices[@]}"; do
		name=${fs[$device]}
		copy "$device" "$name.$session"
		mount -t "$name" "$device" "$work/$name" || not_ok "$name: mount"
		for seed in 11 22 33; do
			bdsnap-testtool ops "$work/$name/ops" "$seed$(printf '%d' "'$session")" 600 &
			jobs+=($!)
		done
		if [ -n "${1:-}" ]; then
			mkdir -p "$work/$name/stress"
			stress-ng --class filesystem --seq 1 --timeout "$1" --temp-path "$work/$name/stress" --exclude $skipped --quiet &
		fi
	done
	for job in "${jobs[@]}"; do wait "$job" || not_ok "random operations"; done
	wait
	for device in "${devices[@]}"; do
		name=${fs[$device]}
		umount "$work/$name" || not_ok "$name: umount"
		is "$name: the session" "mount closed" "$(last kind "$device") $(last state "$device")"
	done
done
try bdsnap verify --all
is "verify" 0 $code
for device in "${devices[@]}"; do
	name=${fs[$device]}
	first=$(column name "$device" | cut -d ' ' -f 1)
	try bdsnap-restore "$device" latest --yes
	is "$name: restore of the second" 0 $code
	copy "$device" "$name.r"
	try bdsnap-restore "$device" "$first" --yes
	is "$name: restore of the first" 0 $code
done
complete
