#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
#
# Restores back and forth, and over whatever happened between sessions: right, or refused.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e f g; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" -- chain.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
for file in "$share"/*.x; do
	[ -e "$file" ] || continue
	unequal "a difference that is to be told: $(basename "$file" .x)" "$file" "${file%.x}.y"
done
[ $pairs -ge 13 ] || not_ok "all pairs: only $pairs"
exit $failed
