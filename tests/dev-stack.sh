#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-stack.sh FS SIZE: the cases dev-stack-*.sh: device-mapper and md on three disks of SIZE.

. "$(dirname "$0")/lib.sh"

for name in a b c; do disk vd$name "$2"; done
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
	--timeout 900 -- dev-stack.sh "$1"
for kind in linear crypt lvm thin raid1 raid5 degraded; do restored "$kind-$1"; done
exit $failed
