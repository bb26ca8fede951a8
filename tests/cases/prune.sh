#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1500
#
# Pruning, killed at many moments, while the module records: what is left restores as before.

. "$(dirname "$0")/../lib.sh"

disk vda 16M
disk vdb 16M
guest "no complaint, nothing left behind" --timeout 1200 --disk "$dir/vda" --disk "$dir/vdb" -- prune.sh
pairs=0
for file in "$share"/*.image; do
	[ -e "$file" ] || continue
	# NAME.STATE.image is to be what stateSTATE is.
	name=$(basename "$file" .image)
	equal "as it should be: ${name%.*}" "$file" "$share/state${name##*.}"
	pairs=$((pairs + 1))
done
is "all images" 6 $pairs
equal "the device is back at the oldest" "$dir/vda" "$share/state0"
exit $failed
