#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# File systems on two disks, and those that write a log.

exec "$(dirname "$0")/../fs.sh" xfs-log btrfs-two f2fs nilfs2 <<END
nilfs2 preallocation
nilfs2 punch hole
nilfs2 zero range
END
