#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# thread: multi
# timeout: 400
#
# Much to save in little memory: the bound holds, the writes and the past are right.

. "$(dirname "$0")/../lib.sh"

for how in strict async; do
	for name in vda vdb; do
		rm -f "$dir/$name"
		disk $name 96M
	done
	guest "$how: no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" -- heavy.sh $how
	for name in vda vdb; do equal "$how, $name: byte for byte" "$share/$name" "$dir/$name"; done
done
exit $failed
