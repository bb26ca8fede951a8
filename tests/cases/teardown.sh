#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1200
#
# Devices that are taken down right after they were written: the module is in nobody's way, and reads nothing
# from what is gone.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e f; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
# In threads of its own each processor is where the other one does not expect it.
guest "no complaint, nothing left behind" --thread multi --store 6G "${options[@]}" --timeout 1100 -- teardown.sh
exit $failed
