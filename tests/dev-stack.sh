#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-stack.sh KINDS FS...: the cases dev-stack-*.sh and cross.sh: these kinds of devices (see
# guest/dev-stack.sh) with each file system, on three disks somewhat larger than it needs.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest/fs-table.sh"
kinds=$1
shift

for fs; do
	size=$(fs_disks "$fs")
	for name in a b c; do
		rm -f "$dir/vd$name"
		disk vd$name $((${size%M} + 32))M
	done
	# shellcheck disable=SC2086
	guest "$fs: no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
		--timeout 900 -- dev-stack.sh "$fs" $kinds
	for kind in $kinds; do restored "$kind-$fs"; done
	[[ " $kinds " != *' raid5 '* ]] || restored "degraded-$fs"
	rm -f "$share"/*
done
exit $failed
