#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Devices that vanish while they are mounted.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" --timeout 900 -- dev-vanish.sh
for name in pulled torn detached; do restored $name; done
equal "pulled: the disk itself" "$share/pulled.0" "$dir/vda"
equal "torn: the disk below" "$share/torn.0" "$dir/vdb"
exit $failed
