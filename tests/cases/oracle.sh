#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: quick
# timeout: 300
#
# Would the other tests notice? A module that does not hold writes and one that drops a record must
# not pass for one that works.

. "$(dirname "$0")/../lib.sh"

for n in 0 1 2; do disk disk$n 64M; done
guest "no complaint, nothing left behind" --disk "$dir/disk0" --disk "$dir/disk1" --disk "$dir/disk2" -- sabotage.sh

result() { cat "$share/$1" 2>/dev/null; }
unequal "there is something to restore" "$share/0.before" "$share/0.after"
is "without sabotage: verified" 0 "$(result 0.verify)"
is "without sabotage: restored" 0 "$(result 0.restore)"
equal "without sabotage: byte for byte" "$share/0.before" "$dir/disk0"

unequal "without holding writes: the hash tells it" "$share/1.before" "$dir/disk1"
differ "without holding writes: the restore does not succeed" 0 "$(result 1.restore)"
unequal "a record is missing: the hash tells it, or nothing was restored" "$share/2.before" "$dir/disk2"
if [ "$(result 2.restore)" = 0 ]; then
	echo "a missing record shows only in the hash" >&2
else
	equal "a missing record: noticed, and the device left alone" "$share/2.after" "$dir/disk2"
fi
exit $failed
