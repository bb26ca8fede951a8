#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# Hibernation for real, in an async session with much in memory and a slow store: the image knows the store as it was,
# so that nothing may be written to it until the machine has resumed.

. "$(dirname "$0")/../lib.sh"

programs=$("$top/scripts/build-tools" | tail -n 1)
# Swap, the store, marks
layout=1,641,897,899
disk vda 899M
for name in vdb vdc; do disk $name 64M; done
options=(--mem 512 --store none --disk "$dir/vda" --log-writes "$dir/writes" --disk "$dir/vdb" --disk "$dir/vdc")
guest "it hibernates" "${options[@]}" --expect-poweroff --timeout 300 -- asleep-reboot.sh hibernate $layout
is "sectors of the store written once the image is" 0 "$("$programs/bdsnap-cut" later "$dir/writes" $layout hibernate)"
is "the disk holds an image" S1SUSPEND "$(dd if="$dir/vda" bs=1 skip=$(((1 << 20) + 4086)) count=9 status=none)"
guest "it resumes" "${options[@]}" --expect-poweroff --timeout 300 -- asleep-reboot.sh resume
tr -d '\0' <"$dir/vdc" >"$dir/results"
grep -aE '^(not )?ok ' "$dir/results"
grep -avE '^ok ' "$dir/results" >&2
if grep -qa '^not ok ' "$dir/results"; then failed=1; fi
is "and came to its end" complete "$(tail -n 1 "$dir/results")"
is "and the module left nothing behind" 1 "$(grep -ac 'bdsnap: unloaded; live objects: bios=0' "$dir/log")"
is "and ext4 had nothing to complain of" 0 "$(grep -ac 'EXT4-fs \(error\|warning\)' "$dir/log")"
exit $failed
