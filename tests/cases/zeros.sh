#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Pre-images of zeros cost no data, and come back as zeros.

. "$(dirname "$0")/../lib.sh"

for how in strict async; do
	rm -f "$dir/vda"
	disk vda 64M
	guest "$how: no complaint, nothing left behind" --disk "$dir/vda" -- zeros.sh $how
	equal "$how: byte for byte" "$share/before" "$dir/vda"
done
exit $failed
