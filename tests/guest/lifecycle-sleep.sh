#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# See tests/cases/lifecycle-sleep.sh. /dev/vda and vdc; results go to vdb, as text: neither the channel to the host
# nor its folder outlasts a suspension of the devices.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lifecycle-lib.sh"

# sleep_as STATE LEVEL: as far as that level and back
sleep_as() {
	echo "$2" >/sys/power/pm_test && echo "$1" >/sys/power/state
}
sum() { dd if="$1" bs=1M iflag=direct status=none | sha256sum; }
asleep() {
	local old
	dd if=/dev/urandom of=/dev/vdc bs=64k count=4 oflag=direct status=none
	old=$(sum /dev/vda)
	mount /dev/vda /mnt
	random 1 /mnt/before
	for level in freezer devices; do
		sleep_as mem $level || not_ok "suspending as far as $level"
		is "suspended to $level: the session goes on" recording "$(status devices.0.state /dev/vda)"
		random 1 /mnt/after-$level
	done
	umount /mnt
	differ "suspended: the session has changed it" "$old" "$(sum /dev/vda)"
	is "suspended: the session" "mount closed" "$(last kind /dev/vda) $(last state /dev/vda)"
	try bdsnap-restore /dev/vda latest --yes
	is "suspended: restore" 0 $code
	is "suspended: as before, byte for byte" "$old" "$(sum /dev/vda)"

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

	old=$(sum /dev/vda)
	mount /dev/vda /mnt
	random 1 /mnt/again
	umount /mnt
	differ "awake: the session has changed it" "$old" "$(sum /dev/vda)"
	is "awake: the session" "mount closed" "$(last kind /dev/vda) $(last state /dev/vda)"
	try bdsnap-restore /dev/vda latest --yes
	is "awake: restore" 0 $code
	is "awake: as before, byte for byte" "$old" "$(sum /dev/vda)"
	deactivate /dev/vda
	deactivate /dev/vdc
	rmmod bdsnap || not_ok "rmmod"
	echo complete
}

# One function: after a suspension the shell can read no further line of this file.
main() {
	[ -e /sys/power/pm_test ] || die "the kernel has no pm_test"
	make_fs ext4 /dev/vda
	sync
	load
	activate /dev/vda
	activate /dev/vdc
	asleep >"$work/results" 2>&1 3>&1
	dd if="$work/results" of=/dev/vdb bs=1M conv=notrunc,fsync 2>/dev/null
	busybox reboot -f
	sleep 100
}
main
