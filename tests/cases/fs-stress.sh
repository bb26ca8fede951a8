#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# Random operations, several programs at once, on ext4, xfs and btrfs.

. "$(dirname "$0")/../lib.sh"

disk vda 128M
disk vdb 320M
disk vdc 160M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --timeout 850 -- fs-stress.sh
for name in ext4 xfs btrfs; do
	equal "$name: back to the second session's start" "$share/$name.b" "$share/$name.r"
	unequal "$name: the first has changed it" "$share/$name.a" "$share/$name.b"
done
for name in vda:ext4 vdb:xfs vdc:btrfs; do
	equal "${name#*:}: back to the first's" "$share/${name#*:}.a" "$dir/${name%:*}"
done
exit $failed
