#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1200
#
# The write phase of a restore is nearly as fast as dd. Tagged full: on a machine that has other work to do the
# figures say little.

. "$(dirname "$0")/../lib.sh"

disk vda 96M
head -c 96M /dev/urandom >"$dir/vda"
guest "no complaint, nothing left behind" --timeout 1000 --disk "$dir/vda" -- restore-speed.sh
equal "the device is as before" "$share/before" "$share/after"
equal "so is the one whose pieces were in no order" "$share/slow-before" "$share/slow-after"
exit $failed
