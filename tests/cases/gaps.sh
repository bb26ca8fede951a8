#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 900
#
# Ways to lose sight of a device between two sessions: each must be told, refused, and overridable.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
disk store 512M
guest "before the reboot" --timeout 420 --store "$dir/store" "${options[@]}" -- gaps.sh before
# While the guest is down, somebody changes one of the disks.
printf 'changed elsewhere' | dd of="$dir/vdb" bs=1 seek=30000000 conv=notrunc status=none
printf 'changed elsewhere' | dd of="$dir/vdc" bs=1 seek=40000 conv=notrunc status=none
guest "after the reboot" --timeout 420 --store "$dir/store" "${options[@]}" -- gaps.sh after
pairs=0
for file in "$share"/*.a; do
	[ -e "$file" ] || continue
	name=$(basename "$file" .a)
	equal "as it should be: $name" "$file" "$share/$name.b"
	pairs=$((pairs + 1))
done
[ $pairs -ge 6 ] || not_ok "all pairs: only $pairs"
exit $failed
