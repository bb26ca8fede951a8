#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# The ext family.

exec "$(dirname "$0")/../fs.sh" ext2 ext3 ext4-1k ext4-bigalloc ext4-journal <<END
ext2 preallocation
ext2 zero range
ext3 preallocation
ext3 zero range
END
