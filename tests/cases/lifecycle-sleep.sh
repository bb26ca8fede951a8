#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 600
#
# Suspending and hibernating, as far as devices and back.

. "$(dirname "$0")/../lib.sh"

for name in vda vdb vdc; do disk $name 24M; done
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --timeout 550 -- lifecycle-sleep.sh
for name in suspended awake; do restored $name; done
exit $failed
