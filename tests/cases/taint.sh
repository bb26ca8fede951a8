#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 500
#
# What is passed unsaved on purpose, by discard=2, or cannot be followed, by a second loop device: the chain must tell,
# also after a power cut.

. "$(dirname "$0")/../lib.sh"

for name in a b c d; do disk vd$name 48M; done
disk store 256M
options=(--store "$dir/store")
for name in a b c d; do options+=(--disk "$dir/vd$name"); done
guest "until the cut" --expect-poweroff --timeout 200 "${options[@]}" -- taint.sh before
guest "no complaint, nothing left behind" --timeout 200 "${options[@]}" -- taint.sh after
unequal "discarded: the device is no more what it was" "$share/discarded.0" "$share/discarded.1"
exit $failed
