#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Devices by links, by names that are not there yet, by names that change.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e f; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" --udev --timeout 900 -- dev-names.sh
for name in by-uuid by-partuuid mapper link renamed-e renamed-f; do restored $name; done
# The last state of whole disks is the host's, not a copy.
equal "vda" "$share/by-uuid.0" "$dir/vda"
equal "vdc" "$share/mapper.0" "$dir/vdc"
equal "vde" "$share/renamed-e.0" "$dir/vde"
equal "vdf" "$share/renamed-f.0" "$dir/vdf"
exit $failed
