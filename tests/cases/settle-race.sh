#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 500
#
# What is written to a device just when it is bound to its registration, and after its medium has changed: the
# hook's table must not lag behind what is called recording.

. "$(dirname "$0")/../lib.sh"

for name in a b; do disk vd$name 32M; done
guest "no complaint, nothing left behind" --thread multi --timeout 400 --disk "$dir/vda" --disk "$dir/vdb" -- settle-race.sh
for name in held during at-once; do restored $name; done
exit $failed
