#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# Power cuts during a strict session: device and store still give its start. Some of many; power-cut-* have more.

. "$(dirname "$0")/../power-cut.sh"

record strict 48 strict
# The last two would be noticed: a disk that does not keep what it has flushed, so that no module can keep its promise.
cuts start:+200:1-4 start:end:5-9 large:ended:12-23 start:end:10-11:lies
is "disks that have lost what they had flushed are noticed" 2 "$lied"
exit $failed
