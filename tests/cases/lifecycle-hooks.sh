#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
#
# Others who trace, probe and redirect the functions that the module hooks.

. "$(dirname "$0")/../lib.sh"

modules=$("$top/scripts/build-module" ${BDSNAP_KERNEL:+--kernel "$BDSNAP_KERNEL"} --source "$top/tests/rig/provoke" | tail -n 1)
cp "$modules/provoke.ko" "$share/"
disk vda 24M
guest "no complaint, nothing left behind" --thread single --disk "$dir/vda" --timeout 550 -- lifecycle-hooks.sh
for name in traced probed taken; do restored $name; done
exit $failed
