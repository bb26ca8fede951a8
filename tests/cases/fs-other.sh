#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# A file system in user space, and devices that a mounted btrfs takes and gives back.

. "$(dirname "$0")/../lib.sh"

disk vda 64M
disk vdb 256M
disk vdc 256M
guest "no complaint, nothing left behind" --disk "$dir/vda" --disk "$dir/vdb" --disk "$dir/vdc" --timeout 900 -- fs-other.sh
for name in fuse taker taken; do restored $name; done
equal "the disk of ntfs-3g itself" "$share/fuse.0" "$dir/vda"
exit $failed
