#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 600
#
# Suspending and hibernating, as far as devices and back.

. "$(dirname "$0")/../lib.sh"

for name in vda vdb vdc; do disk $name 24M; done
guest "no complaint, it ends by itself" --expect-poweroff --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --timeout 300 -- lifecycle-sleep.sh
tr -d '\0' <"$dir/vdb" >"$dir/results"
grep -aE '^(not )?ok ' "$dir/results"
grep -avE '^ok ' "$dir/results" >&2
if grep -qa '^not ok ' "$dir/results"; then failed=1; fi
is "the guest came to its end" complete "$(tail -n 1 "$dir/results")"
is "and the module left nothing behind" 1 "$(grep -ac 'bdsnap: unloaded; live objects: bios=0' "$dir/log")"
exit $failed
