#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# fs.sh KIND...: the cases fs-*.sh: two sessions on each of these file systems, and back. The standard
# input has what they lack: lines `KIND WHAT`.

. "$(dirname "$0")/lib.sh"
. "$top/tests/guest/fs-table.sh"
expected=$(cat)

disks=()
for kind; do
	i=0
	for size in $(fs_disks "$kind"); do
		disk "$kind.$i" "$size"
		disks+=(--disk "$dir/$kind.$i")
		i=$((i + 1))
	done
done
guest "no complaint, nothing left behind" "${disks[@]}" --timeout 900 -- fs.sh "$@"
for kind; do
	i=0
	for _ in $(fs_disks "$kind"); do
		name=$kind.$i
		unequal "$kind, disk $i: the first session has changed it" "$share/$name.0" "$share/$name.1"
		unequal "$kind, disk $i: the second session has changed it" "$share/$name.1" "$share/$name.2"
		equal "$kind, disk $i: as before, byte for byte" "$share/$name.0" "$dir/$name"
		i=$((i + 1))
	done
done
is "what was skipped, and nothing else" "$(sort <<<"$expected")" "$(sort "$share/lacks")"
exit $failed
