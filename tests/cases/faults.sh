#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 2400
#
# Allocations that fail in the module's own code: the origin's writes pass, a session is whole or says
# that it is not, the next one is whole.

. "$(dirname "$0")/../lib.sh"

modules=$("$top/scripts/build-module" ${BDSNAP_KERNEL:+--kernel "$BDSNAP_KERNEL"} --source "$top/tests/rig/provoke" | tail -n 1)
for how in strict async; do
	rm -f "$dir"/vd? "$share"/*
	cp "$modules/starve.ko" "$share/"
	for name in vda vdb; do disk $name 24M; done
	guest "$how: no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --timeout 1100 -- faults.sh $how
	unequal "$how: the last session has changed it" "$share/before" "$share/after"
	equal "$how: its start, byte for byte" "$share/before" "$dir/vda"
done
exit $failed
