#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# A sparse disk of 3 TiB: the image is compared without its holes.

. "$(dirname "$0")/../lib.sh"

# content FILE: a hash of what is in it and where, with zeros taken for holes
content() {
	cp --sparse=always "$1" "$1.canonical"
	tar -C "$dir" -cS --format=gnu --mtime=@0 --owner=0 --group=0 --mode=600 --transform='s,.*,image,' "${1##*/}.canonical" | sha256sum | cut -d ' ' -f 1
	rm "$1.canonical"
}
disk vda 3T
guest "it is made" --timeout 900 --no-module --disk "$dir/vda" -- dev-huge.sh make
before=$(content "$dir/vda")
guest "no complaint, nothing left behind" --timeout 900 --disk "$dir/vda" -- dev-huge.sh session
is "as before, byte for byte" "$before" "$(content "$dir/vda")"
printf x | dd of="$dir/vda" bs=1M seek=1000000 conv=notrunc status=none
differ "the comparison sees one byte" "$before" "$(content "$dir/vda")"
exit $failed
