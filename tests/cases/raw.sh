#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 900
#
# Raw sessions: what writes to a registered device without a file system of its own.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e f g h i j; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" --timeout 850 -- raw.sh
pairs 12 'as it should be'
exit $failed
