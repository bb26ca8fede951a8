#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# Logical blocks of all sizes, and disks of odd sizes.

. "$(dirname "$0")/../lib.sh"

sizes=(2048 4096 16384 65536) options=()
for bytes in "${sizes[@]}"; do
	disk "$bytes" 304M # what xfs wants at least, and a few
	options+=(--disk "$dir/$bytes,logical_block_size=$bytes")
done
disk odd $((48 * 1048576 + 5 * 512))
disk fat $((1440 * 1024 + 512))
guest "no complaint, nothing left behind" "${options[@]}" --disk "$dir/odd" --disk "$dir/fat" \
	--timeout 900 -- dev-blocks.sh "${sizes[@]}"
# 64 KiB are too many for xfs.
is "what there was" "2048 ext4;2048 xfs;4096 ext4;4096 xfs;16384 ext4;16384 xfs;65536 ext4" "$(paste -sd ';' "$share/blocks")"
for bytes in 2048 4096 16384; do
	for fs in ext4 xfs; do restored blocks-$bytes-$fs; done
done
restored blocks-65536-ext4
for name in odd odd-fat; do restored $name; done
exit $failed
