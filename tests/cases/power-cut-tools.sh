#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1500
#
# Power cuts during a restore, which is then resumed, undone or done anew, and during a pruning with merges.

. "$(dirname "$0")/../power-cut.sh"

record restore 48 restore
cuts start:end:1-36
record prune 16 prune
cuts start:end:1-24
exit $failed
