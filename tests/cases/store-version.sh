#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
#
# A store that is older than the module, one chain over both versions of the format, and a store that is newer.

. "$(dirname "$0")/../lib.sh"

disk vda 32M
disk vdb 64M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" -- store-version.sh
pairs 5 "as it should be"
exit $failed
