#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Devices that grow or shrink while they are mounted; read-only ones.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c; do
	disk vd$name 96M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" --timeout 900 -- dev-change.sh
for name in growing shrinking image readonly; do restored $name; done
equal "read-only: the disk itself" "$share/readonly.0" "$dir/vdc"
exit $failed
