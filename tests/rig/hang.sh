#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 600
#
# Does the rig notice what takes the kernel itself a minute to notice?

set -uo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
modules=$("$top/scripts/build-module" --source "$top/tests/rig/provoke" | tail -n 1)
failed=0

for what in hang lockup; do
	status=0
	"$top/scripts/vm" --no-module --no-tools --store none --timeout 200 --share "$modules" -- "insmod /host/provoke.ko what=$what" || status=$?
	if [ $status = 99 ]; then
		echo "ok 99 at a deliberate $what"
	else
		echo "not ok 99 at a deliberate $what: status $status"
		failed=1
	fi
done
exit $failed
