#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# thread: multi
# timeout: 400
#
# Loads and unloads; partitions, blocks of 4 KiB, an odd end, discards and zeroes.

. "$(dirname "$0")/../lib.sh"

for name in vda vdb vdc; do disk $name 64M; done
disk vdd $((64 * 1048576 + 512))
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" \
	--disk "$dir/vdc,logical_block_size=4096,physical_block_size=4096" --disk "$dir/vdd" -- lifecycle.sh
{ read -r start; read -r size; } <"$share/where"
dd if="$share/a-partition.a" of="$dir/partition" bs=512 skip="${start:-0}" count="${size:-0}" status=none
equal "a partition, byte for byte" "$dir/partition" "$share/a-partition-2"
equal "an odd end, byte for byte" "$share/an-odd-end.a" "$dir/vdd"
for name in a-whole-disk blocks-of-4--i- discards; do
	equal "$name, byte for byte" "$share/$name.a" "$share/$name.b"
done
exit $failed
