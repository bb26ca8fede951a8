#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
#
# Large batches of strict sessions, of which the data comes to the store and the records do not.

. "$(dirname "$0")/../lib.sh"

disk vda 64M
disk vdb 128M
guest "no complaint, nothing left behind" --store none --disk "$dir/vda" --disk "$dir/vdb" --timeout 280 -- sync-error.sh
exit $failed
