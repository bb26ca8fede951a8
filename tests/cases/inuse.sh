#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
#
# A restore refuses devices that are in use, and those that are not the session's, and leaves them alone.

. "$(dirname "$0")/../lib.sh"

options=()
for name in a b c d e; do
	disk vd$name 64M
	options+=(--disk "$dir/vd$name")
done
guest "no complaint, nothing left behind" "${options[@]}" -- inuse.sh
for name in vda vdb vdc vdd vde; do equal "$name was left alone" "$share/$name" "$dir/$name"; done
equal "the image was left alone" "$share/image.a" "$share/image.b"
exit $failed
