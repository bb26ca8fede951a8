#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Where the store is and where names lead, when a device is mounted. /dev/vda to vdd.

. "$(dirname "$0")/lib.sh"
store=$(findmnt -n -o SOURCE /snapshot)
load
sessions() { status module.sessions; }

# whole NAME DEVICE: a session that must be whole, and back
whole() {
	copy "$2" "$1.0"
	mount "$2" /mnt || not_ok "$1: mount"
	random 1 /mnt/file
	umount /mnt
	copy "$2" "$1.1"
	is "$1: the session" "mount closed" "$(last kind "$2") $(last state "$2")"
	try bdsnap-restore "$2" latest --yes
	is "$1: restore" 0 $code
	copy "$2" "$1.2"
}

# ---- The store comes later than the device ----

device=/dev/vda
make_fs ext4 $device
sync
activate $device
umount /snapshot
mount $device /mnt || not_ok "no store: mount"
random 1 /mnt/file || not_ok "no store: write"
is "no store: broken" broken "$(status devices.0.state $device)"
mount "$store" /snapshot
random 1 /mnt/file2 || not_ok "the store has come: write"
is "the store has come: broken all the same" broken "$(status devices.0.state $device)"
umount /mnt
is "nothing was written below its mount point" "" "$(unshare -m sh -c 'umount /snapshot; ls -A /snapshot')"
whole later $device

# ---- Something is mounted over the store ----

copy $device over.0
mount $device /mnt
random 1 /mnt/before
mount -t tmpfs tmpfs /snapshot
load_on /mnt 1 1
is "mounted over the store: the running session goes on" recording "$(status devices.0.state $device)"
umount /mnt
is "mounted over the store: nothing in it" "" "$(ls -A /snapshot)"
umount /snapshot
copy $device over.1
is "mounted over the store: the session" "mount closed" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "mounted over the store: restore" 0 $code
copy $device over.2
mount -t tmpfs tmpfs /snapshot
mount $device /mnt || not_ok "another file system at the store's place: mount"
random 1 /mnt/other || not_ok "another file system at the store's place: write"
is "another file system at the store's place: broken" broken "$(status devices.0.state $device)"
umount /mnt
is "another file system at the store's place: left alone" "" "$(ls -A /snapshot)"
umount /snapshot
try bdsnap-restore $device latest --yes
is "written with another file system at the store's place: refused" 5 $code
deactivate $device

# ---- The store's file system takes a registered device ----

umount /snapshot
rmmod bdsnap
mkfs.btrfs -q -f /dev/vdb
mount /dev/vdb /snapshot
load
make_fs ext4 /dev/vdc
activate /dev/vdc
activate $device
btrfs device add -f -K /dev/vdc /snapshot || not_ok "btrfs device add"
bdsnap status
is "a device of the store's file system: it has no session that saves" "broken 0" \
	"$(status devices.0.state /dev/vdc) $(status devices.0.saved_bytes /dev/vdc)"
whole beside $device
btrfs -q balance start --full-balance /snapshot >/dev/null || not_ok "btrfs balance"
whole balanced $device
btrfs device remove /dev/vdc /snapshot || not_ok "btrfs device remove"
is "it is given back" 0 "$(sessions)"
whole removed $device
deactivate $device
deactivate /dev/vdc
rmmod bdsnap
umount /snapshot
mount "$store" /snapshot
load

# ---- The path of an image leads through an automounter that does not answer ----

make_fs ext4 /dev/vdd
mkdir -p "$work/auto/images"
mount /dev/vdd "$work/auto/images"
image=$work/auto/images/image
truncate -s 32M "$image"
make_fs ext4 "$image"
activate "$image"
loop=$(losetup --show -f "$image")
mount "$loop" /mnt
random 1 /mnt/file
umount /mnt
is "automounter: a session before" closed "$(last state "$image")"
# It waits for a daemon that reads this pipe, which nobody does; whoever is in that process group passes.
mkfifo "$work/daemon"
exec 6<>"$work/daemon"
setsid sleep 1000 &
daemon=$!
mount -i -t autofs -o "fd=6,pgrp=$(ps -o pgid= -p $daemon | tr -d ' '),minproto=5,maxproto=5,indirect" auto "$work/auto" || not_ok "autofs"
(ls "$work/auto/images" >/dev/null 2>&1) &
caught=$!
sleep 1
kill -0 $caught || not_ok "automounter: it does not wait"
before=$SECONDS
mount "$loop" /mnt || not_ok "automounter: mount"
atmost "automounter: the mount takes no longer than the look may" 15 $((SECONDS - before))
is "automounter: the session" recording "$(status devices.0.state)"
random 1 /mnt/file2
before=$SECONDS
umount /mnt
atmost "automounter: nor does the unmount" 15 $((SECONDS - before))
bdsnap-testtool catatonic "$work/auto"
wait $caught
for _ in $(seq 50); do umount "$work/auto" && break; sleep 0.2; done
kill $daemon
wait $daemon 2>/dev/null
exec 6>&-
losetup -d "$loop"
is "automounter: two sessions, the second's link unproven" "closed closed none unknown" "$(column state "$image") $(column gap_before "$image")"
try bdsnap verify --all
is "verify" 0 $code
complete
