#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1500
#
# Views of the past as files, of a device that is free and of one in use; files of the past.

. "$(dirname "$0")/../lib.sh"

disk vda 24M
disk vdb 8M
guest "no complaint, nothing left behind" --timeout 1200 --disk "$dir/vda" --disk "$dir/vdb" -- view.sh
images=0
for file in "$share"/*.image; do
	[ -e "$file" ] || continue
	# NAME.STATE.image is to be what stateSTATE is.
	name=$(basename "$file" .image)
	equal "as it was: ${name%.*}" "$file" "$share/state${name##*.}"
	images=$((images + 1))
done
is "all images" 5 $images
equal "the device is as the guest left it" "$dir/vda" "$share/last"
if grep -q '</svg>' "$share/picture.svg"; then ok "a picture"; else not_ok "a picture"; fi
exit $failed
