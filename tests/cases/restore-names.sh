#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1800
#
# Disks that come under each other's names after a reboot: sessions follow the disk, not the name.

. "$(dirname "$0")/../lib.sh"

disk one 64M
disk two 64M
disk store 512M
guest "before: no complaint, nothing left behind" --timeout 800 --store "$dir/store" --disk "$dir/one,serial=one" \
	--disk "$dir/two,serial=two" -- restore-names.sh before
guest "after: no complaint, nothing left behind" --timeout 800 --store "$dir/store" --disk "$dir/two,serial=two" \
	--disk "$dir/one,serial=one" -- restore-names.sh after
equal "the first disk is as before" "$share/one.before" "$dir/one"
equal "the second disk is as before" "$share/two.before" "$dir/two"
equal "refusals wrote nothing" "$share/refused.a" "$share/refused.b"
exit $failed
