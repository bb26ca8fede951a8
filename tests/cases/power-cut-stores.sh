#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1500
#
# Power cuts during strict sessions with the store on other file systems than ext4.

. "$(dirname "$0")/../power-cut.sh"

for store in xfs:320 btrfs:192; do
	record "store on ${store%:*}" 48 strict ext4 "${store%:*}" "${store#*:}"
	cuts start:+200:1-6 start:end:7-24
done
exit $failed
