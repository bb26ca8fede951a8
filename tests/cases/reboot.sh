#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# An orderly reboot while devices are mounted, strict and async.

. "$(dirname "$0")/../lib.sh"

for name in vda vdb; do disk $name 24M; done
disk store 256M
options=(--store "$dir/store" --disk "$dir/vda" --disk "$dir/vdb")
guest "a reboot with mounted devices" "${options[@]}" --expect-poweroff -- reboot.sh before
guest "no complaint, nothing left behind" "${options[@]}" -- reboot.sh after
unequal "strict: the session has changed it" "$share/rebooted.0" "$share/rebooted.1"
equal "strict: as before, byte for byte" "$share/rebooted.0" "$dir/vda"
equal "async: left alone" "$share/async.1" "$share/async.2"
exit $failed
