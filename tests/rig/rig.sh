#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: quick
# timeout: 900
#
# Does the rig tell the truth? A guest's statuses, its kernel's complaints, disks and shares.

# shellcheck disable=SC2016
set -uo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
vm=$top/scripts/vm
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
BDSNAP_KERNEL=$("$top/scripts/kernel") || exit
export BDSNAP_KERNEL

# is NAME EXPECTED ACTUAL
is() {
	if [ "$2" = "$3" ]; then
		echo "ok $1"
	else
		echo "not ok $1: expected '$2', got '$3'"
		failed=1
	fi
}
# guest ARG...: a guest without the product; sets status and output
guest() {
	status=0
	output=$("$vm" --no-module --no-tools --store 64M --timeout 120 "$@" 2>"$dir/stderr") || status=$?
	cat "$dir/stderr" >&2
}

modules=$("$top/scripts/build-module" --source "$top/tests/rig/provoke" | tail -n 1)

guest -- sh -c 'echo "$1"; echo talk >&2; exit 7' - 'two  words'
is "status passes through" 7 $status
is "output and arguments pass through" "two  words" "$output"
is "stderr passes through" talk "$(cat "$dir/stderr")"

# One guest for all that ends well
truncate -s 8M "$dir/disk"
mkdir "$dir/share"
echo "from the host" >"$dir/share/in"
guest --disk "$dir/disk" --disk 16M,logical_block_size=4096 --share "$dir/share" -- '
	cat /host/in; echo "from the guest" >/host/out
	printf hello | dd of=/dev/vda bs=4k seek=3 status=none
	cat /sys/block/vda/serial; echo
	blockdev --getsize64 /dev/vdb; blockdev --getss /dev/vdb
	findmnt -n -o FSTYPE /snapshot
	test -x /tests/rig/rig.sh && ! touch /tests/x 2>/dev/null && echo "tests, read-only"
	for i in 1 2 3; do echo twice >/dev/stderr; done
	set -e
	mkdir /tmp/m; truncate -s 32M /tmp/m.img; mkfs.ext4 -q /tmp/m.img; mount /tmp/m.img /tmp/m
	dmsetup create linear --table "0 2048 linear /dev/vdb 0"; mkfs.ext4 -q /dev/mapper/linear; mount /dev/mapper/linear /mnt
	sleep 1000 & setsid -f sleep 1000
	uname -r'
is "a busy command ends well" 0 $status
is "the guest's view" "from the host
disk0
16777216
4096
ext4
tests, read-only
$BDSNAP_KERNEL" "$output"
is "a share is written" "from the guest" "$(cat "$dir/share/out")"
is "a disk keeps its content" hello "$(dd if="$dir/disk" bs=4k skip=3 count=1 status=none | tr -d '\0')"
is "stderr can be reopened" 3 "$(grep -c twice "$dir/stderr")"

# A store of one's own survives
truncate -s 64M "$dir/store"
guest --store "$dir/store" -- 'echo kept >/snapshot/file'
is "a store is made" 0 $status
guest --store "$dir/store" -- 'cat /snapshot/file'
is "a store is kept" kept "$output"

guest --timeout 15 -- 'sleep 100'
is "98 when out of time" 98 $status

guest -- 'echo b >/proc/sysrq-trigger; sleep 10'
is "97 when the guest ends by itself" 97 $status
guest --expect-poweroff -- 'sync; echo b >/proc/sysrq-trigger; sleep 10'
is "0 when that is expected" 0 $status

for what in warn oops bug atomic; do
	guest --share "$modules" -- "insmod /host/provoke.ko what=$what; true"
	is "99 at a deliberate $what" 99 $status
	grep -q provoke_init "$dir/stderr"
	is "the complaint about $what is shown" 0 $?
done
fake() { status=0; "$vm" --module "$modules/bdsnap.ko" --no-tools --store 64M --timeout 120 "$@" || status=$?; }
fake -- 'modprobe bdsnap'
is "a clean unload is fine" 0 $status
fake -- 'modprobe bdsnap pages=3'
is "99 when objects are left behind" 99 $status
fake -- 'modprobe bdsnap pages=3; rmmod bdsnap'
is "99 also when the command has unloaded" 99 $status
fake -- 'modprobe bdsnap silent=1'
is "99 without an account of the objects" 99 $status
fake --no-unload -- 'modprobe bdsnap pages=3'
is "no unloading if so wished" 0 $status

exit $failed
