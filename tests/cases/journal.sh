#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# File systems that were not cleanly unmounted: the replay of the journal belongs to the session.

. "$(dirname "$0")/../lib.sh"

options=()
for name in vda vdb vdc; do
	disk $name 64M
	options+=(--disk "$dir/$name")
done
for name in vdd vde vdf; do
	disk $name 320M
	options+=(--disk "$dir/$name")
done
guest "no complaint, nothing left behind" "${options[@]}" -- journal.sh
for name in vdb vdc vdd vde; do
	unequal "$name: the session has changed it" "$share/$name" "$share/$name.after"
	equal "$name: dirty as before, byte for byte" "$share/$name" "$dir/$name"
done
exit $failed
