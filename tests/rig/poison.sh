#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
#
# With --poison, does the rig see what writes to freed memory, and past the end of its own? Without KFENCE, which would take
# an object now and then, and say it in its own words.

# shellcheck disable=SC2016
set -uo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
modules=$("$top/scripts/build-module" --source "$top/tests/rig/provoke" | tail -n 1)
failed=0

status=0
"$top/scripts/vm" --poison --append kfence.sample_interval=0 --no-module --no-tools --store none --timeout 200 --share "$modules" --log "$dir/log" -- '
	for what in dangling past page; do
		echo "provoking $what" >/dev/kmsg
		insmod /host/provoke.ko what=$what
		rmmod provoke
	done' || status=$?
# sees WHAT TEXT
sees() {
	awk -v what="provoking $1" '/provoking / { open = $0 ~ what } open' "$dir/log" >"$dir/part"
	if grep -q "$2" "$dir/part" && [ $status = 99 ]; then
		echo "ok 99 at $1"
	else
		echo "not ok 99 at $1: status $status, or no '$2'"
		failed=1
	fi
}
sees dangling '\[Poison overwritten\]'
sees past 'Redzone overwritten\]'
sees page 'pagealloc: memory corruption'
exit $failed
