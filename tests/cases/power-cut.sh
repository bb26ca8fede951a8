#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# Power cuts during a strict session: device and store still give its start. Some of many; power-cut-* have more.

. "$(dirname "$0")/../power-cut.sh"

record strict 48 strict
# Would it notice? With a disk that does not keep what it has flushed no module can keep its promise.
cuts start:+200:1-3 start:end:4-9 start:end:10-12:lies
if [ "$lied" -ge 1 ]; then ok "a disk that loses what it has flushed is noticed: in $lied of 3 cuts"; else not_ok "a disk that loses what it has flushed is not noticed"; fi
exit $failed
