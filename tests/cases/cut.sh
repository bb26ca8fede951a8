#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 200
#
# The machine ends at once during a strict session: device and store still give the image of its start.

. "$(dirname "$0")/../lib.sh"

disk vda 64M
disk store 256M
guest "a machine that ends" --expect-poweroff --store "$dir/store" --disk "$dir/vda" -- cut.sh before
guest "no complaint, nothing left behind" --store "$dir/store" --disk "$dir/vda" -- cut.sh after
unequal "the session has changed it" "$share/start" "$share/cut"
equal "its start, byte for byte" "$share/start" "$dir/vda"
exit $failed
