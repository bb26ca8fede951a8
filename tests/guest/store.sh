# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034,SC2154
#
# Sourced after lib.sh by the scripts that let the store fail. The origin is $device with a file system and
# a file; what such a session must be like is `judge`.

device=${device:-/dev/vda}
milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# events FILE: from now on the module's uevents go there
events() {
	udevadm monitor --kernel --property --subsystem-match=misc >"$1" &
	monitor=$!
	for _ in $(seq 50); do
		grep -q KERNEL "$1" && break
		sleep 0.1
	done
}
# no_events: the end of it
no_events() {
	kill "$monitor"
	wait "$monitor" 2>/dev/null
}
# events_of FILE FROM: the module's uevents from that line on, `EVENT ERRNO` a line
events_of() {
	tail -n "+$2" "$1" | awk -F = '$1 == "BDSNAP_EVENT" { event = $2 } $1 == "BDSNAP_ERRNO" { print event, $2 }'
}
# sum_of DEVICE: of all its bytes, past the cache
sum_of() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d ' ' -f 1; }
# sessions_of STATE: how many of the device's sessions are in that state
sessions_of() { column state "$device" | tr ' ' '\n' | grep -cx "$1"; }

# overwrite FILE MIB [SEEK]: in place, as ransomware would; sets `took` to the milliseconds
overwrite() {
	local began
	began=$(milliseconds)
	dd if=/dev/urandom of="$1" bs=1M count="$2" seek="${3:-0}" conv=notrunc,fsync status=none
	local status=$?
	took=$(($(milliseconds) - began))
	return $status
}

# begin: a session; what the device was is in `was`, the time in `since`
begin() {
	sync
	was=$(sum_of "$device")
	lines=$(($(wc -l <"$log") + 1))
	since=$(date +%s)
	mount "$device" /mnt || not_ok "$name: mount"
}
# told NAME ERRNO: of the session that runs: the status, the time, the log, and one uevent
told() {
	must "$1: the status" "broken $2" "$(status devices.0.state) $(status devices.0.errno)"
	local at
	# Told in whole seconds.
	at=$(date -d "$(status devices.0.broken)" +%s)
	((at >= since && at <= $(date +%s))) || not_ok "$1: the time of its breaking: $at, not after $since"
	for _ in $(seq 20); do
		! events_of "$log" "$lines" | grep -q broken || break
		sleep 0.1
	done
	must "$1: one uevent" "broken $2" "$(events_of "$log" "$lines" | grep broken)"
	must "$1: one line in the log" 1 "$(dmesg -c | grep -c "bdsnap: .*the session is broken (errno $2,")"
}
# refused NAME: the last session broke: a restore wants to be forced, and without that writes nothing
refused() {
	local now
	now=$(sum_of "$device")
	differ "$1: the session has changed the device" "$was" "$now" >/dev/null
	try bdsnap-restore "$device" latest --yes
	[ "$code" != 0 ] || not_ok "$1: a restore without a word"
	must "$1: it wrote nothing" "$now" "$(sum_of "$device")"
	e2fsck -fn "$device" >"$work/fsck" 2>&1 || { cat "$work/fsck"; not_ok "$1: the file system is intact"; }
}
# works NAME: the next session is whole and brings the device back
works() {
	begin
	overwrite /mnt/file 1 2 || not_ok "$1: the next session's writes"
	umount /mnt || not_ok "$1: the next umount"
	must "$1: the next session" "mount closed" "$(last kind "$device") $(last state "$device")"
	try bdsnap-restore "$device" latest --yes
	must "$1: the next session's restore" 0 "$code"
	must "$1: the next session, byte for byte" "$was" "$(sum_of "$device")"
}
