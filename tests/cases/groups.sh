#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# thread: multi
# timeout: 900
#
# File systems of several devices: their sessions know each other.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e f; do
	disk vd$name 128M
	[ $name != e ] || disk vde 320M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" --timeout 850 "${options[@]}" -- groups.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs -ge 6 ] || not_ok "all pairs: only $pairs"
exit $failed
