#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# rmmod.sh [DRIVER...]: unloads drivers whose disks are registered: idle, after a session and in one, and then ours.

. "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- scsi_debug null_blk zram loop brd
load

settle() { bdsnap settle "$@" || not_ok "settle"; }
# Of each driver: DRIVER_up loads it, and sets `device`, what is registered, and `writable`, what is written.
scsi_debug_up() {
	local i
	modprobe sd_mod
	modprobe scsi_debug dev_size_mb=16 delay=0 || die "scsi_debug"
	for ((i = 0; i < 100; i++)); do
		device=$(cd /sys/bus/pseudo/drivers/scsi_debug && echo adapter*/host*/target*/*/block/*)
		writable=/dev/${device##*/} device=/dev/${device##*/}
		[ ! -b "$device" ] || return
		sleep 0.1
	done
	die "scsi_debug: no disk"
}
null_blk_up() {
	modprobe null_blk memory_backed=1 gb=1 nr_devices=1 || die "null_blk"
	device=/dev/nullb0 writable=/dev/nullb0
}
zram_up() {
	modprobe zram num_devices=1 || die "zram"
	echo 16M >/sys/block/zram0/disksize || die "zram"
	device=/dev/zram0 writable=/dev/zram0
}
loop_up() {
	modprobe loop
	[ -e "$work/image" ] || random 16 "$work/image"
	device=$work/image
	writable=$(losetup -f --show "$device") || die "losetup"
}
brd_up() {
	modprobe brd rd_nr=1 rd_size=16384 || die "brd"
	device=/dev/ram0 writable=/dev/ram0
}
# Whoever has set up a loop device lets it go before.
down() { [ "$1" != loop ] || losetup -d "$writable"; }
# unload NAME DRIVER: it is gone, or, with `busy` set, in use until the session has ended
unload() {
	local i
	down "$2"
	try rmmod "$2"
	if [ $code != 0 ] && [ -n "${busy:-}" ] && [[ $out = *"in use"* ]]; then
		echo "$1: in use"
		settle --raw
		try rmmod "$2"
	fi
	is "$1: rmmod $2" "0 gone" "$code $([ -e "/sys/module/$2" ] || echo gone)"
	# The disk is sd's, though the host goes.
	if [ "$2" = scsi_debug ]; then
		try rmmod sd_mod
		is "$1: rmmod sd_mod" 0 $code
	fi
	# The watch looks every half second.
	for ((i = 0; i < 50; i++)); do
		[ "$(status devices.0.present "$device")" != false ] || break
		sleep 0.1
	done
	is "$1: $2's disk is not there" false "$(status devices.0.present "$device")"
	# A driver that did not go has a session of its own.
	settle --raw
	is "$1: no session is left" 0 "$(status module.sessions)"
}
written() { dd if=/dev/urandom of="$writable" bs=64k seek=20 count=16 oflag=direct conv=notrunc status=none || not_ok "$1: written"; }

for driver; do
	[ ! -e "/sys/module/$driver" ] || rmmod "$driver" || {
		skip "$driver: in use by the guest itself"
		continue
	}
	"${driver}_up"
	activate "$device" || not_ok "$driver: activate"
	unload idle "$driver"

	"${driver}_up"
	settle
	is "it is there again: $driver's disk" true "$(status devices.0.present "$device")"
	written "$driver"
	settle --raw
	unload "after a session" "$driver"

	"${driver}_up"
	settle
	written "$driver"
	[ "$driver" = loop ] || is "a session runs on $driver's disk" true "$(status devices.0.raw "$device")"
	busy=1 unload "in a session" "$driver"
	# Of all but the loop device's image the content went with the driver.
	[ "$driver" = loop ] || is "$driver: before the second session the disk was another" 1 \
		"$(column gap_before "$device" | cut -d ' ' -f 2 | grep -cxE 'written|unknown')"
	deactivate "$device"
done
try rmmod bdsnap
is "rmmod bdsnap" 0 $code
load
complete
