#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# See tests/cases/lifecycle-load.sh. /dev/vda to vdc, 24M each.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lifecycle-lib.sh"

make_fs ext4 /dev/vda
make_fs ext4 /dev/vdb
bdsnap-testtool stamp-fill /dev/vdc
sync

# ---- Loads and unloads under load ----

mkdir "$work/b"
mount /dev/vdb "$work/b"
touch "$work/go"
(
	seed=0
	while [ -e "$work/go" ]; do
		bdsnap-testtool stamp-fill /dev/vdc && bdsnap-testtool stamp-run /dev/vdc $((++seed)) 200 direct || exit 1
	done
	echo $seed >"$work/raw-rounds"
) &
raw=$!
(
	seed=0
	while [ -e "$work/go" ]; do bdsnap-testtool ops "$work/b" $((++seed)) 300 || exit 1; done
	echo $seed >"$work/fs-rounds"
) &
fs=$!
refused=0
for i in 1 2 3 4 5 6 7 8; do
	load hold_timeout_ms=60000
	activate /dev/vda || not_ok "load $i: activate"
	activate /dev/vdb || not_ok "load $i: activate what is mounted"
	[ $((i % 2)) = 0 ] || activate /dev/vdc || not_ok "load $i: activate what is being written"
	mount /dev/vda /mnt || not_ok "load $i: mount"
	dd if=/dev/urandom of=/mnt/file bs=64k count=8 conv=fsync status=none
	rmmod bdsnap 2>/dev/null && not_ok "load $i: unloaded during a session"
	umount /mnt
	must "load $i: the session" closed "$(last state /dev/vda)"
	# A raw session may run: whoever deactivates its device ends it.
	rmmod bdsnap 2>/dev/null || refused=$((refused + 1))
	if [ -d /sys/module/bdsnap ]; then
		deactivate /dev/vdc || not_ok "load $i: deactivate"
		rmmod bdsnap || not_ok "load $i: rmmod"
	fi
done
rm "$work/go"
wait $raw || not_ok "the raw writer found what it did not write"
wait $fs || not_ok "the writer on a file system"
echo "raw rounds $(cat "$work/raw-rounds"), file system rounds $(cat "$work/fs-rounds"), rmmod refused $refused times"
umount "$work/b"
e2fsck -fn /dev/vdb || not_ok "the file system under load is intact"
is "no function is redirected any more" 0 "$(ours)"
ok "eight loads and unloads under load"
for i in 1 2 3 4; do
	modprobe bdsnap &
	modprobe bdsnap &
	rmmod bdsnap 2>/dev/null
	wait %1 %2 2>/dev/null
	if [ -c /dev/bdsnap ]; then
		exec 5<>/dev/bdsnap
		rmmod bdsnap 2>/dev/null && not_ok "unloaded while /dev/bdsnap is open"
		exec 5>&-
		rmmod bdsnap
	fi
done
ok "loads and unloads at once"

# ---- Registrations that race with mounts ----

load
touch "$work/go"
(
	i=0
	while [ -e "$work/go" ]; do
		mount /dev/vda /mnt || exit 1
		i=$((i + 1))
		echo $i >"/mnt/race$((i % 5))"
		umount /mnt || exit 1
	done
	echo $i >"$work/mounts"
) &
racer=$!
for i in $(seq 25); do
	deactivate /dev/vda 2>/dev/null
	activate /dev/vda || not_ok "race $i: activate"
done
rm "$work/go"
wait $racer || not_ok "racing mounts"
echo "races: $(cat "$work/mounts") mounts"
is "raced: no session is left" 0 "$(status module.sessions)"
activate /dev/vda
small raced /dev/vda
try bdsnap verify --all
is "raced: verify" 0 $code
complete
