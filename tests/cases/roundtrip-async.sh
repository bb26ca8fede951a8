#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags:
# timeout: 900
#
# Two sessions on each file system, and back, byte for byte.

exec "$(dirname "$0")/../roundtrip.sh" async ext4 xfs btrfs vfat image
