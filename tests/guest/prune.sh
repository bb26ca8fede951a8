#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Sessions of /dev/vda and /dev/vdb are pruned; NAME.STATE.image must be what stateSTATE is.

. "$(dirname "$0")/lib.sh"

rules=(--keep-last 1 --min-age 0)
# session DEVICE SEED
session() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "$2" 1 || not_ok "$1: load"
	umount /mnt
}
# image SESSION STATE NAME: the past from the sessions, to compare with a state that was copied
image() {
	try bdsnap-restore /dev/vda "$1" --to "/host/$3.$2.image"
	is "an image of the start of $3" 0 $code
}

load
for device in /dev/vda /dev/vdb; do
	make_fs ext4 $device
	sync
	activate $device
done
for i in 0 1 2 3 4 5; do
	copy /dev/vda state$i
	session /dev/vda $i
done
session /dev/vdb 1
session /dev/vdb 2
read -r s0 s1 s2 s3 s4 s5 <<<"$(column name /dev/vda)"
read -r other _ <<<"$(column name /dev/vdb)"

try bdsnap-prune
is "no rules: nothing to remove" 0 $code
try bdsnap hold "$s2" upgrade
is "hold" 0 $code
try bdsnap hold "$s0" first
try bdsnap-prune "${rules[@]}" --json
is "the plan in JSON" 0 $code
is "its schema" 1 "$(bdsnap-testtool json schema_version <<<"$out")"
is "two merges of two sessions and one of one" 3 "$(bdsnap-testtool json plan.merged <<<"$out")"
is "the other device's oldest is removed" 1 "$(bdsnap-testtool json plan.removed <<<"$out")"
is "a plan changes nothing" 8 "$(list 'sessions.#')"
try bdsnap-prune explain "$s1" "${rules[@]}"
is "explain" 0 $code

# The seventh session of vda records all the time.
mount /dev/vda /mnt
bdsnap-testtool work /mnt/more 7 1
for pause in 0.02 0.1 0.2 0.4 0.8; do
	bdsnap-prune "${rules[@]}" --apply --quiet &
	sleep $pause
	kill -9 $! 2>/dev/null
	wait $! 2>/dev/null
	try bdsnap verify --all
	is "killed after $pause s: all is whole" 0 $code
done
# With no more than the unit of the packages gives it.
try setpriv --no-new-privs --bounding-set=-all,+sys_admin,+dac_override,+fowner,+chown \
	bdsnap-prune "${rules[@]}" --apply
is "prune" 0 $code
is "what is recorded is left alone" true "$(status devices.0.recording /dev/vda)"
bdsnap-testtool work /mnt/again 8 1
umount /mnt
is "what stays of vda" "$s0 $s2 $(column name /dev/vda | cut -d ' ' -f 3)" "$(column name /dev/vda)"
is "and the last one is the one that was recorded" closed "$(list sessions.2.state /dev/vda)"
try bdsnap-prune trash
is "the trash" 0 $code
image "$s0" 0 first
image "$s2" 2 held

try bdsnap-prune undelete "$s3"
is "a merge taken back" 0 $code
image "$s0" 0 first-again
image "$s2" 2 held-again
image "$s3" 3 undeleted
try bdsnap-prune undelete "$other"
is "an oldest session put back" 0 $code
try bdsnap verify --all
is "all is whole" 0 $code
try bdsnap-prune empty-trash
is "empty the trash" 0 $code
is "it is empty" 0 "$(find /snapshot/.bdsnap-trash -mindepth 1 | wc -l)"
image "$s0" 0 first-at-last

date -s '2027-12-31' >/dev/null
try bdsnap-prune "${rules[@]}" --apply
is "a clock that was set is not believed" 5 $code
hwclock -s 2>/dev/null || date -s '2026-11-23' >/dev/null

try bdsnap-restore /dev/vda "$s0" --yes
is "restore the oldest, through merged ones" 0 $code
try bdsnap release "$s0" nothing
is "no such hold" 3 $code
try bdsnap release "$s0" first
is "release" 0 $code
complete
