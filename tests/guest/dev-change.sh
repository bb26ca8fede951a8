#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Devices that grow or shrink while they are mounted, and read-only ones. /dev/vda
# to vdc.

. "$(dirname "$0")/lib.sh"
load

# resize NAME SECTORS DEVICE: what dm shows of it
resize() {
	dmsetup load "$1" --table "0 $2 linear $3 0" || not_ok "$1: load"
	dmsetup resume "$1" || not_ok "$1: resume"
}
# mapped NAME SECTORS DEVICE
mapped() {
	dmsetup create "$1" --table "0 $2 linear $3 0" || die "dmsetup"
	dmsetup mknodes
}
back() {
	try bdsnap-restore "$@" --yes
	is "${1##*/}: restore" 0 $code
}

# ---- Growth ----

mapped growing 65536 /dev/vda
device=/dev/mapper/growing
make_fs ext4 $device
sync
copy /dev/vda growing.0
activate $device
mount $device /mnt
load_on /mnt 1 1
resize growing 131072 /dev/vda
resize2fs $device 2>&1 || not_ok "growth: resize2fs"
load_on /mnt 2 2
umount /mnt
copy /dev/vda growing.1
is "growth: the session" "mount closed" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "growth: restore to before it" 0 $code
# What was outside of the device at the session's start is no part of it.
dd if=/dev/vda of=/host/growing.2 bs=1M count=32 iflag=direct status=none
truncate -s 32M /host/growing.0
deactivate $device
dmsetup remove growing

# ---- Shrinkage ----

mapped shrinking 131072 /dev/vda
device=/dev/mapper/shrinking
mkfs.ext4 -q -F $device 32M
sync
copy /dev/vda shrinking.0
activate $device
mount $device /mnt
load_on /mnt 1 1
# Beyond the file system, and beyond what will be left
dd if=/dev/urandom of=$device bs=1M seek=50 count=2 oflag=direct conv=notrunc status=none
resize shrinking 65536 /dev/vda
load_on /mnt 2 1
umount /mnt
bdsnap status $device
resize shrinking 131072 /dev/vda
copy /dev/vda shrinking.1
# What was cut off could not be looked at in the end.
is "shrinkage: the session" "mount broken" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "shrinkage: refused" 5 $code
try bdsnap-restore $device latest --yes --accept-gap --accept-loss
is "shrinkage: restore all the same" 6 $code
copy /dev/vda shrinking.2
deactivate $device
dmsetup remove shrinking

# ---- An image that grows ----

make_fs ext4 /dev/vdb
mkdir "$work/below"
mount /dev/vdb "$work/below"
image=$work/below/image
truncate -s 32M "$image"
make_fs ext4 "$image"
sync
cp "$image" /host/image.0
activate "$image"
loop=$(losetup --show -f "$image")
mount "$loop" /mnt
truncate -s 64M "$image"
losetup -c "$loop"
resize2fs "$loop" 2>&1 || not_ok "image: resize2fs"
load_on /mnt 1 2
umount /mnt
losetup -d "$loop"
cp "$image" /host/image.1
try bdsnap-restore "$image" latest --yes
is "an image that has grown: restore to before it" 0 $code
head -c 32M "$image" >/host/image.2
deactivate "$image"
umount "$work/below"

# ---- Read-only ----

device=/dev/vdc
make_fs ext4 $device
sync
copy $device readonly.0
activate $device
blockdev --setro $device
# mount tries again, read-only.
mount -o rw $device /mnt || not_ok "read-only: mount -o rw"
is "read-only: so it is mounted" ro "$(findmnt -n -o OPTIONS /mnt | cut -d , -f 1)"
umount /mnt
is "read-only: no claim is left" 0 "$(status module.sessions)"
mount -o ro $device /mnt || not_ok "read-only: mount"
ls -lR /mnt >/dev/null
umount /mnt
is "read-only: nothing in the store" 0 "$(list 'sessions.#' $device)"
is "read-only: over" 0 "$(status module.sessions)"
# Mounted as it was, then writable
mount -o ro $device /mnt
blockdev --setrw $device
mount -o remount,rw /mnt || not_ok "read-only: remount"
load_on /mnt 1 1
umount /mnt
copy $device readonly.1
is "read-only, then writable: the session" "mount closed" "$(last kind $device) $(last state $device)"
back $device latest
copy $device readonly.2
deactivate $device
complete
