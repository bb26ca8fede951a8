#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A btrfs of /dev/vda and vdb, an ext4 on vdc with its journal on vdd. Copies for the host to compare:
# NAME.a and NAME.b must be equal.

. "$(dirname "$0")/lib.sh"

# session DEVICE SEED
session() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "$2" 1 || not_ok "$1: load"
	umount /mnt
}
# both NAME DEVICE DEVICE: copies of both
both() { for d in "$2" "$3"; do copy "$d" "$1-${d##*/}"; done; }
# same NAME AS DEVICE DEVICE: both devices as they are now must be as in the copies AS
same() {
	for d in "$3" "$4"; do
		copy "$d" "$1-${d##*/}.a"
		cp --sparse=always "/host/$2-${d##*/}" "/host/$1-${d##*/}.b"
	done
}

load
modprobe btrfs
mkfs.btrfs -q -f -d raid0 -m raid1 /dev/vda /dev/vdb
mke2fs -q -F -O journal_dev -b 4096 /dev/vdd
mke2fs -q -F -t ext4 -b 4096 -J device=/dev/vdd /dev/vdc
sync
for device in /dev/vd[a-d]; do activate $device; done

both first /dev/vda /dev/vdb
btrfs device scan /dev/vda /dev/vdb
session /dev/vda 1
first=$(list "sessions.0.name" /dev/vdb)
both second /dev/vda /dev/vdb
session /dev/vda 2
both now /dev/vda /dev/vdb
try bdsnap-restore /dev/vdb latest --dry-run --json
is "the plan of a btrfs" 0 $code
is "is of both devices" 2 "$(bdsnap-testtool json plan.devices.# <<<"$out")"
try bdsnap-restore /dev/vdb latest --yes
is "both, by naming the second" 0 $code
same one-back second /dev/vda /dev/vdb
try bdsnap-restore /dev/vda --undo --yes
is "and undo, by naming the first" 0 $code
same undone now /dev/vda /dev/vdb
try bdsnap-restore /dev/vdb "$first" --yes
is "both, two sessions back" 0 $code
same two-back first /dev/vda /dev/vdb
# A file system that mounts, and whose next session has no gap before it
btrfs device scan /dev/vda /dev/vdb
session /dev/vda 3
is "the chain went on without a gap" none "$(column gap_before /dev/vda | sed 's/.* //')"
try bdsnap-restore /dev/vda latest --yes
is "restored over the restore" 0 $code

both first /dev/vdc /dev/vdd
session /dev/vdc 4
try bdsnap-restore /dev/vdd latest --yes
is "ext4 with its journal, by naming the journal" 0 $code
same external first /dev/vdc /dev/vdd
deactivate /dev/vdd
session /dev/vdc 5
both incomplete /dev/vdc /dev/vdd
try bdsnap-restore /dev/vdc latest --yes --accept-gap
is "with an unregistered journal: refused" 5 $code
[[ $out = *"not all of them were registered"* && $out = *--alone* ]] || not_ok "the reason: $out"
same refused incomplete /dev/vdc /dev/vdd
try bdsnap-restore /dev/vdc latest --yes --alone
is "alone, if that is asked for" 0 $code
complete
