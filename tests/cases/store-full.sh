#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# A store that fills up at any write of a session: the origin never notices, and no session passes for whole.

. "$(dirname "$0")/../lib.sh"

disk vda 16M
disk vdb 24M
guest "no complaint, nothing left behind" --store none --disk "$dir/vda" --disk "$dir/vdb" --timeout 850 -- store-full.sh
equal "the last restore, byte for byte" "$share/last.a" "$dir/vda"
exit $failed
