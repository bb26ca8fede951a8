#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# gaps.sh before|after: what stands between sessions over a reboot on /dev/vda to vdc, a clock that goes
# back on vdd, and a store that loses its numbers on vde. Copies for the host to compare: NAME.a and
# NAME.b must be equal.

. "$(dirname "$0")/lib.sh"

gap() { column gap_before "$1" | sed 's/.* //'; }
# session DEVICE SEED
session() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "$2" 1 || not_ok "$1: load"
	umount /mnt
}
# refused NAME DEVICE ARG...: with status 5 and the device untouched
refused() {
	local name=$1 device=$2 file=${1//[^a-z0-9]/-}
	shift
	copy "$device" "$file.a"
	try bdsnap-restore "$@" --yes
	is "refused: $name" 5 $code
	copy "$device" "$file.b"
}

load
if [ "$1" = before ]; then
	for device in /dev/vd[abc]; do
		make_fs ext4 $device
		sync
		activate $device
		copy $device "${device##*/}.before"
		session $device 1
	done

	# ---- The clock goes back ----

	device=/dev/vdd
	make_fs ext4 $device
	sync
	activate $device
	copy $device vdd.before
	session $device 1
	date -s '2001-01-01 00:00:00' || not_ok "date"
	copy $device vdd.middle
	session $device 2
	is "no gap by a clock that was set back" none "$(gap $device)"
	is "nor another order" "1 2" "$(column chain_seq $device | awk '{ print $1 < $2 ? "1 2" : "2 1" }')"
	try bdsnap-restore $device latest --yes
	is "the newest session is the last one made" 0 $code
	copy $device clock-newest.a
	mv /host/vdd.middle /host/clock-newest.b
	try bdsnap-restore $device "$(column name $device | cut -d ' ' -f 1)" --yes
	is "and the first the first" 0 $code
	copy $device clock-first.a
	mv /host/vdd.before /host/clock-first.b

	# ---- The store loses its numbers ----

	device=/dev/vde
	make_fs ext4 $device
	sync
	activate $device
	copy $device vde.before
	session $device 1
	tail=$(printf %s "$device" | sha256sum | cut -c 1-16)
	rm /snapshot/.bdsnap-chain/"$tail"*
	session $device 2
	try bdsnap list $device
	refused "over a lost end of the chain" $device latest~1
	# With the marker the highest number given is lost as well.
	rm /snapshot/.bdsnap-chain/"$tail"* /snapshot/.bdsnap-store
	bdsnap init || not_ok "init"
	session $device 3
	is "the numbers go on" "yes" "$(column chain_seq $device | awk '{ print ($1 < $2 && $2 < $3) ? "yes" : $0 }')"
	refused "over a store that began anew" $device "$(column name $device | cut -d ' ' -f 1)"
	try bdsnap-restore $device latest --dry-run
	is "the newest session is restorable all the same" 0 $code
	complete
	exit
fi

for device in /dev/vd[abc]; do activate $device; done

# ---- Nothing happened, but nobody watched ----

refused "over a reboot" /dev/vda latest
try bdsnap-restore /dev/vda latest --yes --accept-gap
is "if accepted" 0 $code
copy /dev/vda reboot.a
mv /host/vda.before /host/reboot.b

# ---- Changed elsewhere: in a place that is looked at, and in one that is not ----

session /dev/vdc 2
is "changed elsewhere: told" written "$(gap /dev/vdc)"
refused "changed elsewhere" /dev/vdc latest~1
session /dev/vdb 2
is "changed elsewhere, where no sample is: at least unknown" yes "$([[ "$(gap /dev/vdb)" = @(unknown|written) ]] && echo yes)"
refused "changed elsewhere without a trace" /dev/vdb latest~1
complete
