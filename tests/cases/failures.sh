#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# thread: multi
# timeout: 900
#
# Whatever happens to the store, the origin's writes go on, and the session does not pass for a whole one.

. "$(dirname "$0")/../lib.sh"

disk vda 48M
disk vdb 128M
disk vdc 96M
disk vdd 64M
guest "no complaint, nothing left behind" --store none --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
	--disk "$dir/vdd" --timeout 850 -- failures.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "a refused restore wrote nothing, the next one all: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs = 7 ] || not_ok "all pairs: only $pairs"
exit $failed
