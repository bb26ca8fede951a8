#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# The store: mounted late, mounted over, on a file system that takes a registered device. And names
# that lead through an automounter.

. "$(dirname "$0")/../lib.sh"

for name in a c d; do disk vd$name 64M; done
disk vdb 1G
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --disk "$dir/vdd" \
	--timeout 900 -- mount-store.sh
for name in later over beside balanced removed; do restored $name; done
exit $failed
