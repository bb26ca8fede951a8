#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
#
# Damage in the store is found before a byte is written.

. "$(dirname "$0")/../lib.sh"

disk disk 64M
guest "no complaint, nothing left behind" --disk "$dir/disk" -- damage.sh
n=$(cat "$share/n" 2>/dev/null || echo 0)
wrong='' right=0
for ((i = 0; i < n; i++)); do
	for pair in "to.$i second" "one.$i first"; do
		read -r made reference <<<"$pair"
		[ -e "$share/$made" ] || continue
		if [ "$(hash "$share/$made")" = "$(hash "$share/$reference")" ]; then right=$((right + 1)); else wrong+=" $made"; fi
	done
done
is "what could be restored is right" "" "$wrong"
if [ $right -ge 3 ]; then ok "and something could"; else not_ok "and something could: $right images"; fi
equal "the device was left alone" "$share/third" "$dir/disk"
exit $failed
