#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# Writes of all sizes in all ways, to several devices at once: what is written is there, what was is
# restored, and nothing that the disk counts as written was missed.

. "$(dirname "$0")/../lib.sh"

disk vda 32M
disk vdb 96M
disk vdc 128M
disk vdd 24M
disk vde 24M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --disk "$dir/vdd" \
	--disk "$dir/vde" --timeout 850 -- integrity.sh
for name in vda vdb vdc vdd vde; do
	unequal "$name: the session has changed it" "$share/$name.0" "$share/$name.1"
	equal "$name: as before, byte for byte" "$share/$name.0" "$dir/$name"
done
exit $failed
