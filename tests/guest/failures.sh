#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# When pre-images can't be saved: the writes go on, and the session is broken and says why. The store
# is on dm devices over vda (small, 48M) and vdb, the origin on vdc and on dm over vdd.

. "$(dirname "$0")/lib.sh"

milliseconds() { echo $(($(date +%s%N) / 1000000)); }
# table DISK [KIND]: the whole disk as a dm device; KIND: linear or error
table() {
	local size
	size=$(blockdev --getsz "$1")
	case ${2:-linear} in
	linear) echo "0 $size linear $1 0" ;;
	error) echo "0 $size error" ;;
	esac
}
# new_store DISK: at /snapshot, over the dm device `store`
new_store() {
	dmsetup create store --table "$(table "$1")"
	dmsetup mknodes
	mkfs.ext4 -q -F /dev/mapper/store
	mount /dev/mapper/store /snapshot || die "the store"
	bdsnap init || not_ok "bdsnap init"
}
old_store() {
	umount /snapshot || not_ok "umount of the store"
	dmsetup remove --retry store || not_ok "removal of the store's device"
}
# full_of DEVICE MIB: a file system with a file of that size
full_of() {
	mkfs.ext4 -q -F "$1"
	mount "$1" /mnt || die "mount $1"
	random "$2" /mnt/file
	umount /mnt
	sync
}
# overwrite MIB FILE: in place, as ransomware would
overwrite() { dd if=/dev/urandom of="$2" bs=1M count="$1" conv=notrunc,fsync status=none; }
intact() {
	e2fsck -fn "$2" >"$work/fsck" 2>&1
	code=$?
	[ $code = 0 ] || cat "$work/fsck"
	is "$1: the file system is intact" 0 $code
}
# broken NAME DEVICE ERRNO [RESTORE-OPTION]: what the list and meta.json say of its last session; then restores
broken() {
	local name=$1 device=$2 errno=$3 last
	last=$(($(list 'sessions.#' "$device") - 1))
	is "$name: the list says broken, errno $errno" "broken $errno" "$(list sessions.$last.state "$device") $(list sessions.$last.errno "$device")"
	is "$name: so does meta.json" 1 "$(grep -cE '"state": *"broken"' "/snapshot/$(list sessions.$last.name "$device")/meta.json")"
	copy "$device" "${name//[^a-z0-9]/-}.a"
	try bdsnap-restore "$device" latest --yes
	is "$name: restore is refused" 5 $code
	copy "$device" "${name//[^a-z0-9]/-}.b"
	try bdsnap-restore "$device" latest --yes --accept-loss --accept-gap ${4:+"$4"}
	is "$name: if the loss is accepted: partial" 6 $code
}
# next NAME DEVICE: the session after a broken one works
next() {
	local start file=${1//[^a-z0-9]/-}
	copy "$2" "$file-next.a"
	mount "$2" /mnt || not_ok "$1: the next mount"
	random 1 /mnt/next
	umount /mnt
	start=$(column state "$2")
	is "$1: the next session" closed "${start##* }"
	try bdsnap-restore "$2" latest --yes
	is "$1: the next session's restore" 0 $code
	copy "$2" "$file-next.b"
}

full_of /dev/vdc 60

# ---- A full store ----

for least in default 0; do
	name="full store, min_free_mib $least"
	new_store /dev/vda
	if [ $least = 0 ]; then load min_free_mib=0; else load; fi
	activate /dev/vdc
	mount /dev/vdc /mnt
	overwrite 55 /mnt/file || not_ok "$name: the writes go on"
	is "$name: the status says so" "broken 28" "$(status devices.0.state) $(status devices.0.errno)"
	bdsnap status --check
	is "$name: status --check" 1 $?
	free=$(df --output=avail -B1M /snapshot | tail -n 1)
	[ $least = 0 ] || atleast "$name: some space is left (MiB)" 1 "$free"
	umount /mnt || not_ok "$name: umount"
	is "$name: in the log" 1 "$(dmesg -c | grep -c 'bdsnap: .*vdc.*broken')"
	intact "$name" /dev/vdc
	broken "$name" /dev/vdc 28 --no-undo # which would not fit
	rm -rf /snapshot/vdc*
	next "$name" /dev/vdc
	rmmod bdsnap || not_ok "$name: rmmod"
	old_store
done

# ---- A store that does not answer, and one with errors ----

new_store /dev/vdb
load hold_timeout_ms=3000
activate /dev/vdc
full_of /dev/vdd 1
activate /dev/vdd
mount /dev/vdd /mnt
random 1 /mnt/file
umount /mnt
name="store hangs"
mount /dev/vdc /mnt
overwrite 1 /mnt/file
dmsetup suspend --nolockfs store
began=$(milliseconds)
dd if=/dev/urandom of=/mnt/file bs=1M seek=10 count=8 conv=notrunc,fsync status=none || not_ok "$name: the writes go on"
took=$(($(milliseconds) - began))
# The debug kernel is three times as slow.
most=9000
[[ $(uname -r) != *-debug ]] || most=27000
atmost "$name: not held much longer than the time-out (ms)" $most $took
atleast "$name: but held (ms)" 2000 $took
is "$name: the status says so" "broken 110" "$(status devices.0.state) $(status devices.0.errno)"
# Whoever asks for what is in the store has an answer, and holds nobody up.
echo 3 >/proc/sys/vm/drop_caches
began=$(milliseconds)
is "$name: a restore of another device is told so" ETIMEDOUT "$(bdsnap-testtool restore-begin s:/dev/vdd)"
atmost "$name: soon (ms)" 6000 $(($(milliseconds) - began))
deactivate /dev/vdd
try rmmod bdsnap
is "$name: rmmod is refused" 1 $code
(
	sleep 15
	dmsetup resume store
) &
began=$(milliseconds)
umount /mnt || not_ok "$name: umount"
atmost "$name: umount in spite of it (ms)" 13000 $(($(milliseconds) - began))
wait
sleep 1
intact "$name" /dev/vdc
broken "$name" /dev/vdc 110
next "$name" /dev/vdc

name="store with errors"
mount /dev/vdc /mnt
overwrite 1 /mnt/file
switch store "$(table /dev/vdb error)"
dd if=/dev/urandom of=/mnt/file bs=1M seek=30 count=8 conv=notrunc,fsync status=none || not_ok "$name: the writes go on"
is "$name: the status says so" broken "$(status devices.0.state)"
umount /mnt || not_ok "$name: umount"
intact "$name" /dev/vdc
switch store "$(table /dev/vdb)"
rmmod bdsnap || not_ok "$name: rmmod"
umount /snapshot
fsck.ext4 -fy /dev/mapper/store
mount /dev/mapper/store /snapshot || not_ok "$name: the store's mount"
load hold_timeout_ms=5000
try bdsnap list
is "$name: the list works afterwards" 0 $code
try bdsnap-restore /dev/vdc latest --yes
[ $code != 0 ] && ok "$name: no restore without a word" || not_ok "$name: no restore without a word"

# ---- An origin that can't be read ----

name="origin with read errors"
size=$(blockdev --getsz /dev/vdd)
dmsetup create origin --table "$(table /dev/vdd)"
dmsetup mknodes
full_of /dev/mapper/origin 40
activate /dev/mapper/origin || die "activate"
mount /dev/mapper/origin /mnt || die "mount"
cat /mnt/file >/dev/null # so that ext4 has nothing to read
switch origin "0 $size flakey /dev/vdd 0 0 3600 1 error_reads" || switch origin "0 $size flakey /dev/vdd 0 0 3600 0"
dd if=/dev/urandom of=/mnt/file bs=1M seek=10 count=8 conv=notrunc,fsync status=none || not_ok "$name: the writes go on"
is "$name: the status says so" "broken 5" "$(status devices.0.state /dev/mapper/origin) $(status devices.0.errno /dev/mapper/origin)"
switch origin "$(table /dev/vdd)"
umount /mnt || not_ok "$name: umount"
intact "$name" /dev/mapper/origin
broken "$name" /dev/mapper/origin 5

# ---- No store, where one should be ----

name="store not mounted"
rmmod bdsnap
old_store
load
rm -rf /snapshot/.bdsnap* # of the hand-over
touch /snapshot/something
try activate /dev/vdc
is "$name: activate refuses" 5 $code
# Past the tool, as when the store is unmounted later
bdsnap-testtool call 174 s:/dev/vdc "s:$(cat "$password")"
mount /dev/vdc /mnt
overwrite 1 /mnt/file || not_ok "$name: the writes go on"
is "$name: the status says so" broken "$(status devices.0.state)"
umount /mnt || not_ok "$name: umount"
is "$name: nothing was written there" something "$(ls -A /snapshot)"
intact "$name" /dev/vdc
complete
