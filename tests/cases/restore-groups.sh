#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1800
#
# File systems on several devices, restored as one.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d; do
	disk vd$name 128M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" --timeout 1500 "${options[@]}" -- restore-groups.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs = 10 ] || not_ok "all pairs: only $pairs"
exit $failed
