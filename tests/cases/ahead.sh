#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# thread: multi
# timeout: 900
#
# Reading ahead of sequential writers.

. "$(dirname "$0")/../lib.sh"

for how in strict async; do
	rm -f "$dir"/vda "$share"/a.*
	disk vda 96M
	guest "$how: no complaint, nothing left behind" --disk "$dir/vda" --timeout 420 -- ahead.sh $how
	equal "$how: byte for byte" "$share/a.before" "$share/a.after"
done
exit $failed
