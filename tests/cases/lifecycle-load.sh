#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# Loads and unloads while much is written, at the same time, and registrations that race with mounts.

. "$(dirname "$0")/../lib.sh"

for name in vda vdb vdc; do disk $name 24M; done
guest "no complaint, nothing left behind" --thread single --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
	--timeout 850 -- lifecycle-load.sh
restored raced
exit $failed
