#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# restore-names.sh before|after: two disks, which change places in between.

. "$(dirname "$0")/lib.sh"
load

if [ "$1" = before ]; then
	for name in vda:one vdb:two; do
		device=/dev/${name%:*}
		make_fs ext4 "$device"
		sync
		copy "$device" "${name#*:}.before"
		activate "$device"
		mount "$device" /mnt || not_ok "mount"
		bdsnap-testtool work /mnt/work 1 1 || not_ok "load"
		umount /mnt
	done
	complete
	exit
fi

# vda is the second one now.
first=$(list sessions.0.name)
second=$(list sessions.1.name)
is "the first session is of vda" "vda_" "${first:0:4}"
copy /dev/vda refused.a
try bdsnap-restore /dev/vda "$first" --yes --accept-gap
is "another disk under the old name: refused" 5 $code
[[ $out = *serial* ]] || not_ok "the reason: $out"
copy /dev/vda refused.b
is "and not listed as its own" "$second" "$(column name /dev/vda)"
try bdsnap-restore /dev/vdb "$first" --yes --accept-gap -v
is "the disk under its new name" 0 $code
[[ $out = *"same disk"* ]] || not_ok "the ground: $out"
try bdsnap-restore /dev/vda latest --yes --accept-gap
is "the other one as well" 0 $code
complete
