#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1500
#
# Power cuts during sessions on xfs, some within their first 200 ms.

. "$(dirname "$0")/../power-cut.sh"
many xfs 64
exit $failed
