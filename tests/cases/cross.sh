#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 7200
#
# Each file system on each kind of device.

exec "$(dirname "$0")/../dev-stack.sh" "disk partition loop linear crypt lvm thin raid1 raid5" \
	ext2 ext3 ext4 ext4-1k ext4-bigalloc xfs xfs-1k btrfs vfat exfat f2fs nilfs2 minix ntfs udf jfs
