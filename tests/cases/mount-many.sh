#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Thousands of registrations.

. "$(dirname "$0")/../lib.sh"

for name in a b c; do disk vd$name 64M; done
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --timeout 900 \
	-- mount-many.sh 3000
restored many
exit $failed
