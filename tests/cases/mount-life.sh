#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# What mounts go through: failures, second mounts, lazy unmounts, namespaces.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
disk vde 320M
guest "no complaint, nothing left behind" "${options[@]}" --disk "$dir/vde" --timeout 900 -- mount-life.sh
equal "failed mounts, byte for byte" "$share/failed.0" "$share/failed.2"
for name in replayed often remounted contained inside late; do restored $name; done
exit $failed
