#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# reboot.sh before: an orderly reboot with /dev/vda (strict) and /dev/vdb (async) mounted.
# reboot.sh after: on the same disks.

. "$(dirname "$0")/lib.sh"
case $1 in
before)
	load
	mkdir "$work/a" "$work/b"
	for name in a b; do
		make_fs ext4 /dev/vd$name
		mount /dev/vd$name "$work/$name"
		random 6 "$work/$name/file"
		umount "$work/$name"
	done
	sync
	copy /dev/vda rebooted.0
	activate /dev/vda
	activate /dev/vdb --durability async
	for name in a b; do
		mount /dev/vd$name "$work/$name"
		dd if=/dev/urandom of="$work/$name/file" bs=64k conv=notrunc,fsync count=60 status=none
	done
	sync -f /host
	busybox reboot -f
	sleep 100
	;;
after)
	load
	copy /dev/vda rebooted.1
	is "the sessions" "interrupted interrupted" "$(column state /dev/vda) $(column state /dev/vdb)"
	atleast "all of the async one is in the store" $((60 * 65536)) "$(column saved_bytes /dev/vdb)"
	try bdsnap verify --all
	is "verify" 0 $code
	try bdsnap-restore /dev/vda latest --yes
	is "nobody has watched the device since: refused" 5 $code
	try bdsnap-restore /dev/vda latest --yes --accept-gap
	[[ $code = [06] ]] || not_ok "restore: status $code"
	copy /dev/vdb async.1
	try bdsnap-restore /dev/vdb latest --yes --accept-gap
	is "async and interrupted: never silently" 5 $code
	copy /dev/vdb async.2
	complete
	;;
esac
