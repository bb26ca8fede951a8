#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-stack.sh SIZE KINDS FS...: the cases dev-stack-*.sh and cross.sh: these kinds of devices (see
# guest/dev-stack.sh) on three disks of SIZE, with each file system.

. "$(dirname "$0")/lib.sh"
size=$1 kinds=$2
shift 2

for fs; do
	for name in a b c; do
		rm -f "$dir/vd$name"
		disk vd$name "$size"
	done
	# shellcheck disable=SC2086
	guest "$fs: no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
		--timeout 900 -- dev-stack.sh "$fs" $kinds
	for kind in $kinds; do restored "$kind-$fs"; done
	[[ " $kinds " != *' raid5 '* ]] || restored "degraded-$fs"
	rm -f "$share"/*
done
exit $failed
