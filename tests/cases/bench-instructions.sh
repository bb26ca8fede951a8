#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
#
# What a write costs in instructions, and what is kept for a byte saved, in memory and in the store. The
# guest's clock counts instructions, so that the machine's load has no say in it.

. "$(dirname "$0")/../lib.sh"
guest "no complaint" --count --mem 1536 --store none -- ../bench/instructions.sh
exit $failed
