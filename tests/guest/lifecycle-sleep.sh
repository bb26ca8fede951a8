#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# See tests/cases/lifecycle-sleep.sh. /dev/vda and vdc.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lifecycle-lib.sh"

make_fs ext4 /dev/vda
sync
load
activate /dev/vda

# sleep_as STATE LEVEL: as far as that level and back
sleep_as() {
	echo "$2" >/sys/power/pm_test && echo "$1" >/sys/power/state
}
if [ -e /sys/power/pm_test ]; then
	activate /dev/vdc
	dd if=/dev/urandom of=/dev/vdc bs=64k count=4 oflag=direct status=none
	copy /dev/vda suspended.0
	mount /dev/vda /mnt
	random 1 /mnt/before
	for level in freezer devices; do
		sleep_as mem $level || not_ok "suspending as far as $level"
		is "suspended to $level: the session goes on" recording "$(status devices.0.state /dev/vda)"
		random 1 /mnt/after-$level
	done
	umount /mnt
	copy /dev/vda suspended.1
	is "suspended: the session" "mount closed" "$(last kind /dev/vda) $(last state /dev/vda)"
	try bdsnap-restore /dev/vda latest --yes
	is "suspended: restore" 0 $code
	copy /dev/vda suspended.2
	mount /dev/vda /mnt
	random 1 /mnt/before
	dd if=/dev/urandom of=/dev/vdc bs=64k count=4 oflag=direct status=none
	sleep_as disk devices || not_ok "hibernating as far as devices"
	is "hibernated: the session is broken" "broken 125" "$(status devices.0.state /dev/vda) $(status devices.0.errno /dev/vda)"
	is "hibernated: the raw session has ended" closed "$(last state /dev/vdc)"
	random 1 /mnt/after || not_ok "hibernated: writes"
	umount /mnt
	is "hibernated: the store says so" "broken 125" "$(last state /dev/vda) $(last errno /dev/vda)"
	try bdsnap-restore /dev/vda latest --yes
	is "hibernated: restore is refused" 5 $code
	small awake /dev/vda
	echo none >/sys/power/pm_test
else
	skip "suspending and hibernating: the kernel has no pm_test"
	for name in suspended awake; do for i in 0 1 2; do echo $((i % 2)) >"/host/$name.$i"; done; done
fi
complete
