#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Devices that vanish while they are mounted: a disk is pulled, a loop device detached, a mapping removed.
# What they held can be brought back when they are there again. /dev/vda to vdc.

. "$(dirname "$0")/lib.sh"
load

# busy: writes to /mnt until it fails
busy() {
	(
		i=0
		while dd if=/dev/urandom of="/mnt/busy$((i++ % 7))" bs=20000 count=5 conv=fsync status=none; do :; done
	) 2>/dev/null &
	busy=$!
}
# over NAME DEVICE: unmounted after it vanished
over() {
	wait $busy
	umount /mnt || not_ok "$1: umount"
	is "$1: no session is left" 0 "$(status module.sessions)"
	is "$1: nothing is held" 0 "$(status devices.0.holding "$2")"
	bdsnap status "$2"
	bdsnap list "$2"
}
# again NAME DEVICE DISK: it is there again, is repaired, mounted, and restored to before all that
again() {
	bdsnap settle
	is "$1: it is there again" true "$(status devices.0.present "$2")"
	copy "$3" "$1.1"
	fsck.ext4 -fy "$2" >/dev/null
	mount "$2" /mnt || not_ok "$1: mount again"
	random 1 /mnt/again
	umount /mnt
	is "$1: since then a raw session by fsck, behind a gap, and one by the mount" "mount raw mount closed 1" \
		"$(column kind "$2") $(last state "$2") $(column gap_before "$2" | cut -d " " -f 2 | grep -cE "written|unknown")"
	# The first session: of what was written to the disk before it was gone, all was saved.
	try bdsnap-restore "$2" "$(column name "$2" | cut -d " " -f 1)" --yes --accept-gap --accept-loss
	# Only if it went while something was being read for the session has that lost anything.
	lost=0
	[ "$(column state "$2" | cut -d " " -f 1)" = closed ] || lost=6
	is "$1: restore to before, as well as can be" $lost $code
	copy "$3" "$1.2"
}

# ---- A disk is pulled ----

device=/dev/vda
make_fs ext4 $device
sync
copy $device pulled.0
activate $device
mount $device /mnt
load_on /mnt 1 1
busy
sleep 1
pci=$(readlink -f /sys/block/vda/device/..)
echo 1 >"$pci/remove"
over pulled $device
echo 1 >/sys/bus/pci/rescan
for _ in $(seq 100); do [ -b $device ] && break; sleep 0.1; done
again pulled $device $device
deactivate $device

# ---- A mapping is removed by force ----

device=/dev/mapper/torn
dmsetup create torn --table "0 $(blockdev --getsz /dev/vdb) linear /dev/vdb 0"
dmsetup mknodes
make_fs ext4 $device
sync
copy /dev/vdb torn.0
activate $device
mount $device /mnt
load_on /mnt 1 1
busy
sleep 1
dmsetup --force remove torn # fails: it is in use; all its I/O does, from now on
over torn $device
dmsetup remove torn 2>/dev/null
dmsetup create torn --table "0 $(blockdev --getsz /dev/vdb) linear /dev/vdb 0"
dmsetup mknodes
again torn $device /dev/vdb
deactivate $device
dmsetup remove torn

# ---- A loop device is detached: the kernel does it at the unmount ----

make_fs ext4 /dev/vdc
mkdir "$work/below"
mount /dev/vdc "$work/below"
image=$work/below/image
truncate -s 48M "$image"
make_fs ext4 "$image"
sync
cp "$image" /host/detached.0
activate "$image"
loop=$(losetup --show -f "$image")
mount "$loop" /mnt
load_on /mnt 1 1
losetup -d "$loop"
random 1 /mnt/more
umount /mnt
is "detached: the loop device is gone" "" "$(losetup -j "$image")"
cp "$image" /host/detached.1
is "detached: the session" "mount closed" "$(last kind "$image") $(last state "$image")"
try bdsnap-restore "$image" latest --yes
is "detached: restore" 0 $code
cp "$image" /host/detached.2
umount "$work/below"
try bdsnap verify --all
is "verify" 0 $code
complete
