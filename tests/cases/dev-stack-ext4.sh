#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# ext4 on device-mapper and md devices that are registered themselves.

exec "$(dirname "$0")/../dev-stack.sh" "linear crypt lvm thin raid1 raid5" ext4
