#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# roundtrip.sh HOW FS...: the cases roundtrip-*.sh; HOW: strict, async, or syscall (activation by system
# call, with the module's default).

. "$(dirname "$0")/lib.sh"
how=$1
shift

disks=()
for fs; do
	case $fs in
	xfs) disk $fs 320M ;; # its mkfs wants 300 MiB
	vfat) disk $fs 64M ;;
	*) disk "$fs" 128M ;;
	esac
	disks+=(--disk "$dir/$fs")
done
guest "$how: no complaint, nothing left behind" "${disks[@]}" --timeout 600 -- roundtrip.sh "$how" "$@"

for fs; do
	if [ "$fs" = image ]; then
		# Out of the file system that it lies in, without mounting it.
		path=$(debugfs -R 'ls -p /' "$dir/image" 2>/dev/null | grep -c image.raw)
		is "image: there is one" 1 "$path"
		debugfs -R "dump /image.raw $dir/image.raw" "$dir/image" 2>/dev/null
		mv "$dir/image.raw" "$dir/image"
	fi
	unequal "$fs: the first session has changed it" "$share/$fs.0" "$share/$fs.1"
	unequal "$fs: the second session has changed it" "$share/$fs.1" "$share/$fs.2"
	equal "$how, $fs: the second session's start, byte for byte" "$share/$fs.1" "$share/$fs.back"
	equal "$how, $fs: the first session's start, byte for byte" "$share/$fs.0" "$dir/$fs"
done
exit $failed
