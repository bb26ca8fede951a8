#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Restores that must be refused because the device is in use, or another one. Copies from before go to
# /host/vdX; the host finds that nothing has changed.

. "$(dirname "$0")/lib.sh"
load

# session DEVICE
session() {
	mount "$1" /mnt || not_ok "$1: mount"
	random 1 /mnt/file
	umount /mnt
}
# refused NAME DEVICE: with all that can be accepted
refused() {
	try bdsnap-restore "$2" latest --yes --accept-gap --accept-loss --alone
	is "$1: refused" 5 $code
}
prepare() {
	make_fs ext4 "$1"
	sync
	activate "$1"
	session "$1"
}

device=/dev/vda
prepare $device
copy $device vda
mount -o ro,noload $device /mnt
refused "mounted" $device
refused "mounted, by its mount point" /mnt
umount /mnt
# In the pipe: `ready` once the mount is there
mkfifo "$work/ready"
unshare --mount --propagation private sh -c "mount -o ro,noload $device /mnt; echo >$work/ready; exec sleep 100" &
sleeper=$!
read -r _ <"$work/ready"
refused "mounted in another namespace" $device
kill $sleeper
wait $sleeper
for i in $(seq 50); do dd if=/dev/null of=$device oflag=excl conv=notrunc status=none 2>/dev/null && break; sleep 0.1; done
dmsetup create test --table "0 $(blockdev --getsz $device) linear $device 0"
refused "held by dm" $device
dmsetup remove test

device=/dev/vdb
prepare $device
mkswap -q $device
swapon $device || not_ok "swapon"
copy $device vdb
refused "swap" $device
swapoff $device

device=/dev/vdc
echo ';' | sfdisk -q $device
activate $device
partprobe $device 2>/dev/null
make_fs ext4 ${device}1
sync
session ${device}1
copy $device vdc
mount -o ro,noload ${device}1 /mnt
refused "a partition is mounted" $device
umount /mnt
# The whole disk's session, asked for by a partition's name
try bdsnap-restore ${device}1 latest --yes
[ $code != 0 ] || not_ok "restore of a partition from the session of the disk"

# Another disk below the same name
for device in /dev/vdd /dev/vde; do make_fs ext4 $device; done
sync
table() { dmsetup create moving --table "0 $(blockdev --getsz "$1") linear $1 0"; }
table /dev/vdd
dmsetup mknodes
activate /dev/mapper/moving
session /dev/mapper/moving
dmsetup remove moving
copy /dev/vdd vdd
copy /dev/vde vde
table /dev/vde
dmsetup mknodes
try bdsnap-restore /dev/mapper/moving latest --yes
is "another disk of the same size and name: refused" 5 $code
dmsetup remove moving
dmsetup create moving --table "0 65536 linear /dev/vde 0"
dmsetup mknodes
refused "another size" /dev/mapper/moving
dmsetup remove moving
dmsetup mknodes
try bdsnap-restore /dev/mapper/moving latest --yes
is "no such device" 3 $code

# An image that was cut, one that is attached, and one that is another file now
image=$work/image
truncate -s 32M "$image"
make_fs ext4 "$image"
activate "$image"
mount -o loop "$image" /mnt
random 1 /mnt/file
refused "an image that is mounted" "$image"
umount /mnt
cp "$image" "$image.kept"
truncate -s 16M "$image"
cp "$image" /host/image.a
refused "an image that was cut" "$image"
cp "$image" /host/image.b
for device in /dev/null /etc "$work/absent"; do
	try bdsnap-restore "$device" latest --yes
	[ $code != 0 ] || not_ok "restore to $device"
done
complete
