#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# Writes that come just when a raw session ends, and are left in the page cache; writes that somebody waits for who has
# the disk's lock; writes beside a restore.

. "$(dirname "$0")/../lib.sh"

disk vda 32M
disk vdb 8M
guest "no complaint, nothing left behind" --thread multi --timeout 300 --disk "$dir/vda" --disk "$dir/vdb" -- raw-close.sh
restored close
restored locked
restored table
equal "an undisturbed restore: as before, byte for byte" "$share/alone.0" "$share/alone.2"
exit $failed
