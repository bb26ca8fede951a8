#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Restores to and fro on /dev/vda, and what stands between sessions on /dev/vdb to vdg. Copies for the
# host to compare: NAME.a and NAME.b must be equal, NAME.x and NAME.y must not.

. "$(dirname "$0")/lib.sh"

# session DEVICE [SEED]
session() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "${2:-1}" 1 || not_ok "$1: load"
	umount /mnt
}
# restore NAME CODES DEVICE ARG...: CODES as in 5|6
restore() {
	local name=$1 codes=$2
	shift 2
	try bdsnap-restore "$@" --yes
	if [[ "|$codes|" = *"|$code|"* ]]; then ok "$name"; else not_ok "$name: status $code, expected $codes"; fi
}
# refused NAME DEVICE ARG...: with status 5 and the device untouched
refused() {
	local name=$1 device=$2 file=${1//[^a-z0-9]/-}
	shift
	copy "$device" "$file.a"
	restore "$name" 5 "$@"
	copy "$device" "$file.b"
}

# Without raw sessions writes between sessions are gaps; with them see raw.sh.
load raw_idle_s=0
for device in /dev/vd[a-g]; do
	make_fs ext4 "$device"
	sync
	activate "$device"
done

# ---- To and fro ----

device=/dev/vda
copy $device state0
session $device 1
copy $device state1
session $device 2
copy $device state2
read -r first second <<<"$(column name $device)"
cp /host/state2 /host/untouched.a
try bdsnap-restore $device "$first" --dry-run
is "dry run" 0 $code
try bdsnap-restore $device latest~1 --dry-run --json
is "dry run in JSON" 0 $code
is "its schema" 1 "$(bdsnap-testtool json schema_version <<<"$out")"
for session in $first $second; do
	try bdsnap-restore $device "$session" --to "/host/to.$session"
	is "an image of the past" 0 $code
done
mv "/host/to.$first" /host/image-of-the-first.a
cp /host/state0 /host/image-of-the-first.b
mv "/host/to.$second" /host/image-of-the-second.a
cp /host/state1 /host/image-of-the-second.b
copy $device untouched.b
try bdsnap-restore $device latest
is "nobody to ask: refused" 5 $code
try bdsnap-restore $device "${first:0:5}" --yes
is "an ambiguous name" 2 $code
try bdsnap-restore $device nonsense --yes
is "no such session" 3 $code
try bdsnap-restore /dev/vdb "$first" --yes
is "another device's session: refused" 5 $code

restore "restore the first of two" 0 $device "$first"
copy $device back-to-the-first.a
cp /host/state0 /host/back-to-the-first.b
restore "then the second" 0 $device "$second"
copy $device then-to-the-second.a
cp /host/state1 /host/then-to-the-second.b
restore "then undo that" 0 $device --undo
copy $device then-undo.a
cp /host/state0 /host/then-undo.b
restore "and undo the undo" "0|5" $device --undo
if [ $code = 0 ]; then
	copy $device undo-of-undo.a
	cp /host/state1 /host/undo-of-undo.b
fi
session $device 3
restore "a session on top of all that" 0 $device latest
for command in "list" "list $device" "status" "verify --all" "verify $first"; do
	try bdsnap $command --json
	is "bdsnap $command --json" 0 $code
	is "its schema" 1 "$(bdsnap-testtool json schema_version <<<"$out")"
done

# ---- Writes between sessions ----

gap() { list sessions."$1".gap_before "$2"; }

device=/dev/vdb
copy $device over-a-label.x
session $device 1
tune2fs -L other $device
copy $device to-after-the-label.a
session $device 2
is "tune2fs between sessions is a gap" written "$(gap 1 $device)"
restore "to the session after the gap" 0 $device latest
copy $device to-after-the-label.b
refused "over tune2fs" $device latest~1
restore "over tune2fs if accepted" "0|6" $device latest~1 --accept-gap
try bdsnap-restore $device latest~1 --accept-gap --dry-run --json
is "over a gap, the plan in JSON" 0 $code
copy $device over-a-label.y

device=/dev/vdc
session $device 1
printf x | dd of=$device bs=512 seek=100000 conv=fsync,notrunc status=none
refused "after dd of one byte" $device latest
restore "after dd if accepted" "0|6" $device latest --accept-gap

device=/dev/vdd
session $device 1
make_fs ext4 $device
sync
refused "after mkfs" $device latest

device=/dev/vde
session $device 1
deactivate $device
activate $device
session $device 2
is "deactivated in between: unknown" unknown "$(gap 1 $device)"
refused "over a deactivation" $device latest~1
restore "not over it" 0 $device latest

# Nothing was written, so that only the module's absence stands in between.
device=/dev/vdf
session $device 1
rmmod bdsnap
load raw_idle_s=0
activate $device
session $device 2
is "module loaded anew in between: unknown" unknown "$(gap 1 $device)"
refused "over a reload" $device latest~1
restore "not over the reload" 0 $device latest

device=/dev/vdg
activate $device
session $device 1
copy $device mounted.a
mount -o ro,noload $device /mnt
try bdsnap-restore $device latest --yes
is "mounted: refused" 5 $code
umount /mnt
copy $device mounted.b
complete
