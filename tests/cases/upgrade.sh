#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 2400
#
# An upgrade while a session runs, and a way back: new tools with the old module, the new module after it, old tools
# and the old module with what that has left. The old ones are the last that write version 1 of the format.

. "$(dirname "$0")/../lib.sh"

old=ef030f7
mkdir "$dir/old" "$share/old"
if ! git -C "$top" archive "$old" 2>"$dir/why" | tar -x -C "$dir/old"; then
	cat "$dir/why" >&2
	skip "upgrade: this checkout has no commit $old"
	exit
fi
cp "$("$dir/old/scripts/build-module" --kernel "$BDSNAP_KERNEL")" "$share/old/" || exit
cp "$("$dir/old/scripts/build-tools")"/bdsnap* "$share/old/" || exit
disk vda 32M
guest "no complaint, nothing left behind" --disk "$dir/vda" --timeout 500 -- upgrade.sh
pairs 5 "as it should be"
exit $failed
