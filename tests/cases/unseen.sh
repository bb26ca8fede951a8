#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 600
#
# Writes that reach a registered disk past the block layer's front door, which must be told; and all the usual
# ones, which must not.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e; do
	disk vd$name 32M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" --timeout 500 -- unseen.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "restored byte for byte: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs -ge 7 ] || not_ok "all pairs: only $pairs"
exit $failed
