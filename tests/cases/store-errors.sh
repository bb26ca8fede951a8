#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# A store that is frozen, read-only, has errors at some places or from some moment on, whose folders are removed
# or replaced during a session: the origin never notices, and no session passes for whole.

. "$(dirname "$0")/../lib.sh"

disk vda 32M
disk vdb 96M
guest "no complaint, nothing left behind" --store none --disk "$dir/vda" --disk "$dir/vdb" --timeout 850 -- store-errors.sh
equal "the last restore, byte for byte" "$share/last.a" "$dir/vda"
exit $failed
