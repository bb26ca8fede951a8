#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 900
#
# Little memory and much that wants it: 256 MiB, a slow store, memory written through mappings, a program that needs
# more than there is, and a swap file on the protected file system. And writes larger than all the memory that
# pre-images may have.

. "$(dirname "$0")/../lib.sh"

for how in strict async; do
	rm -f "$dir"/vd?
	disk vda 320M
	disk vdb 512M
	guest "$how: no complaint, nothing left behind" --mem 268 --append hugepages=6 --root 512M --store none --disk "$dir/vda" --disk "$dir/vdb" \
		--timeout 400 -- memory.sh $how
	equal "$how: byte for byte" "$share/vda" "$dir/vda"
done
exit $failed
