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
pairs 7 'restored byte for byte'
exit $failed
