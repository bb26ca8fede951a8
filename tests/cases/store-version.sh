#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
#
# A store that is older than the module, one chain over both versions of the format, and a store that is newer.

. "$(dirname "$0")/../lib.sh"

disk vda 32M
disk vdb 64M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" -- store-version.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs = 5 ] || not_ok "all pairs: only $pairs"
exit $failed
