#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# thread: multi
# timeout: 500
#
# Random calls of the control interface while a session runs, and links planted in the store.

. "$(dirname "$0")/../lib.sh"

disk vda 96M
disk vdb 16M
disk vdc 16M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" \
	--timeout 450 -- attack.sh
restored under-random-calls
restored among-links
exit $failed
