#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1500
#
# Power cuts during sessions on ext4, some within their first 200 ms.

. "$(dirname "$0")/../power-cut.sh"
many ext4 48
exit $failed
