#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1800
#
# Restores that are stopped or killed while they write, resumed and undone.

. "$(dirname "$0")/../lib.sh"

disk vda 192M
guest "no complaint, nothing left behind" --timeout 1500 --disk "$dir/vda" -- restore-resume.sh
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs -ge 4 ] || not_ok "all pairs: only $pairs"
exit $failed
