#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 600
#
# Who above a registered device counts on what a discard does: RAID's parity and mirrors, thin pools, whoever
# reads zeros afterwards. And who does not: a file system of its own.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e f g; do
	disk vd$name 32M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" --timeout 500 -- discard-raid.sh
pairs 5 'restored byte for byte'
exit $failed
