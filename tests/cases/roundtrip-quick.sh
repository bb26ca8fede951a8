#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: quick
# timeout: 400
#
# Two sessions on a disk and on an image file, and back, byte for byte.

exec "$(dirname "$0")/../roundtrip.sh" syscall ext4 image
