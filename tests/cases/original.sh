#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1800
#
# Sessions as the original module left them, of a disk, of a partition and of an image.

. "$(dirname "$0")/../lib.sh"

disk vda 32M
disk vdb 34M
disk vdc 40M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
	--timeout 1500 -- original.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs = 5 ] || not_ok "all pairs: only $pairs"
exit $failed
