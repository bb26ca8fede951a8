#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Image files: parts, partitions, other names, two loop devices.

. "$(dirname "$0")/../lib.sh"

disk vda 1G
guest "no complaint, nothing left behind" --disk "$dir/vda" --timeout 900 -- dev-loop.sh
for name in loop loop-xfs loop-4k loop-part loop-P loop-beside loop-link loop-bind; do restored $name; done
exit $failed
