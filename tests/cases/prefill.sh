#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# Small writes one after the other: their pre-images go to places in the store that were made before.

. "$(dirname "$0")/../lib.sh"

disk vda 96M
head -c 96M /dev/urandom >"$dir/vda"
for how in strict async; do
	guest "$how: no complaint, nothing left behind" --disk "$dir/vda" -- prefill.sh $how
	equal "$how: byte for byte" "$share/before" "$share/after"
done
exit $failed
