#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Mounts that write nothing: squashfs, erofs, others read-only.

. "$(dirname "$0")/../lib.sh"

options=()
for name in vda vdb vdc; do
	disk $name 32M
	options+=(--disk "$dir/$name")
done
disk vdd 320M
guest "no complaint, nothing left behind" --timeout 900 "${options[@]}" --disk "$dir/vdd" -- fs-quiet.sh
for name in vda vdb vdc vdd; do equal "$name: as before, byte for byte" "$share/$name" "$dir/$name"; done
exit $failed
