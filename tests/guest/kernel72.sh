#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# kernel72.sh KVER: what differs in kernels before 7.3. Disks: ext4, one for an image file, two for
# btrfs, two for f2fs. NAME.0 and NAME.1 in /host are what they hold before and after a session; in
# the end they hold NAME.0 again.

. "$(dirname "$0")/lib.sh"
is "the kernel" "$1" "$(uname -r)"

# watch EVENT PROBE [FILTER]: count an event from now on; seen EVENT: how often it came
watch() {
	echo "p:watch/$1 $2" >>/sys/kernel/tracing/kprobe_events || die "no kprobe event $1"
	[ -z "${3:-}" ] || echo "$3" >"/sys/kernel/tracing/events/watch/$1/filter" || die "no filter of $1"
	echo 1 >"/sys/kernel/tracing/events/watch/$1/enable"
}
seen() { grep -c " $1: " /sys/kernel/tracing/trace; }
# sessions DEVICE: how those of its mounts ended; claims DEVICE: how many filesystems hold it now
sessions() {
	paste -d ' ' <(column kind "$1" | tr ' ' '\n') <(column state "$1" | tr ' ' '\n') |
		sed -n 's/^mount //p' | paste -sd ' '
}
claims() { status devices.0.claims "$1"; }

# ---- The control device: before 7.3 the kernel's own registration has no owner ----

load
exec 5<>/dev/bdsnap
is "an open /dev/bdsnap counts" 1 "$(</sys/module/bdsnap/refcnt)"
try rmmod bdsnap
is "rmmod while it is open" 1 $code
is "because of EBUSY" 1 "$(echo "$out" | grep -c 'in use')"
is "it still answers" 0 "$(status 'devices.#')"
exec 5>&-
is "a closed one does not" 0 "$(</sys/module/bdsnap/refcnt)"
try rmmod bdsnap
is "rmmod afterwards" 0 $code
load

# ---- System calls: before 7.3 numbers above the table reach sys_ni_syscall, and thereby the hook ----

watch ni '__x64_sys_ni_syscall nr=+120(%di):s64' 'nr >= 473'
for nr in 473 1000 $((0x400000ae)) $((0x7fffffff)); do
	is "system call $nr" ENOSYS "$(bdsnap-testtool call "$nr" s:/dev/vda 's:correct horse')"
done
is "and all reach the hook" 4 "$(seen ni)"
is "nothing is registered" 0 "$(status 'devices.#')"
is "system call 174" 0 "$(bdsnap-testtool call 174 s:/dev/vda 's:correct horse')"
is "registers a device" 1 "$(status 'devices.#')"

# ---- A disk and an image: names and files are looked up by workers, whose root is not empty here ----

# round NAME DEVICE [MOUNT-OPTION...]: a session and back
round() {
	local name=$1 device=$2
	shift 2
	copy "$device" "$name.0"
	mount "$@" "$device" /mnt || not_ok "$name: mount"
	bdsnap-testtool work /mnt/work 7 1 || not_ok "$name: load"
	umount /mnt
	copy "$device" "$name.1"
	is "$name: a session" closed "$(sessions "$device")"
	try bdsnap-restore "$device" latest --yes
	is "$name: restore" 0 $code
}
deactivate /dev/vda
make_fs ext4 /dev/vda
sync
activate /dev/vda
round ext4 /dev/vda
make_fs ext4 /dev/vdb
mkdir "$work/below"
mount /dev/vdb "$work/below"
truncate -s 32M "$work/below/image.raw"
make_fs ext4 "$work/below/image.raw"
sync
activate "$work/below/image.raw"
round image "$work/below/image.raw" -o loop
umount "$work/below"

# ---- btrfs looks a device up by its name with operations but no holder: no claim ----

make_fs btrfs /dev/vdc
make_fs btrfs /dev/vdd
sync
copy /dev/vdc btrfs1.0
activate /dev/vdc
activate /dev/vdd
watch lookup 'bdev_file_open_by_dev holder=%dx:x64 hops=%cx:x64' 'holder == 0 && hops != 0'
mount /dev/vdc /mnt
before=$(seen lookup)
try btrfs device remove /dev/vdd /mnt
is "btrfs: a device of another filesystem is not removed" 1 $code
is "btrfs: it was looked up" $((before + 1)) "$(seen lookup)"
is "btrfs: without a claim" "" "$(sessions /dev/vdd)"
is "btrfs: only the other is claimed" "1 0" "$(claims /dev/vdc) $(claims /dev/vdd)"
# Adding it writes to it first: zeroes, which it shall have from the start. A session would absorb the discard.
deactivate /dev/vdd
blkdiscard -f /dev/vdd || not_ok "blkdiscard"
activate /dev/vdd
copy /dev/vdd btrfs2.0
btrfs -q device add -f /dev/vdd /mnt || not_ok "btrfs device add"
is "btrfs: an added device is claimed" "1 recording" "$(claims /dev/vdd) $(sessions /dev/vdd)"
bdsnap-testtool work /mnt/work 8 4 || not_ok "btrfs: load"
before=$(seen lookup)
btrfs -q device remove /dev/vdd /mnt || not_ok "btrfs device remove"
atleast "btrfs: it was looked up to be removed" $((before + 1)) "$(seen lookup)"
is "btrfs: its session is over" closed "$(sessions /dev/vdd)"
is "btrfs: the other goes on" recording "$(sessions /dev/vdc)"
umount /mnt
is "btrfs: to its end" closed "$(sessions /dev/vdc)"
copy /dev/vdc btrfs1.1
copy /dev/vdd btrfs2.1
try bdsnap-restore /dev/vdc latest --yes
is "btrfs: restore of both devices" 0 $code

# ---- f2fs claims its further devices with a holder but no operations ----

mkfs.f2fs -q -f -c /dev/vdf /dev/vde >/dev/null || not_ok "mkfs.f2fs"
sync
copy /dev/vde f2fs1.0
copy /dev/vdf f2fs2.0
watch further 'bdev_file_open_by_dev dev=%di:u32 holder=%dx:x64 hops=%cx:x64' 'holder != 0 && hops == 0'
# fill: both devices get their share
fill() {
	random "$1" /mnt/file
	sync
	bdsnap-testtool work /mnt/work 9 1 || not_ok "f2fs: load"
	umount /mnt
}
# Only the further one, then both
activate /dev/vdf
before=$(seen further)
mount /dev/vde /mnt || not_ok "f2fs: mount"
atleast "f2fs: the further device was opened without operations" $((before + 1)) "$(seen further)"
is "f2fs: the further device is claimed, and recorded" "1 true" "$(claims /dev/vdf) $(status devices.0.recording /dev/vdf)"
fill 2
is "f2fs: to its end" closed "$(sessions /dev/vdf)"
try bdsnap-restore /dev/vdf latest --yes
is "f2fs: the first device was not registered: refused" 5 $code
try bdsnap-restore /dev/vdf latest --yes --alone
is "f2fs: restore of the further device alone" 0 $code
dd if=/host/f2fs1.0 of=/dev/vde bs=1M oflag=direct status=none || not_ok "f2fs: the first device by hand"
activate /dev/vde
mount /dev/vde /mnt || not_ok "f2fs: mount with both"
is "f2fs: both devices are claimed" "1 1" "$(claims /dev/vde) $(claims /dev/vdf)"
fill 40
copy /dev/vde f2fs1.1
copy /dev/vdf f2fs2.1
is "f2fs: both to their end" "closed, closed closed" "$(sessions /dev/vde), $(sessions /dev/vdf)"
try bdsnap-restore /dev/vde latest --yes
is "f2fs: restore of both devices" 0 $code
# Who opens a device exclusively without being a filesystem claims nothing.
before=$(seen further)
dmsetup create over --table "0 2048 linear /dev/vda 0" || not_ok "dmsetup"
atleast "a dm device opens with a holder and without operations, too" $((before + 1)) "$(seen further)"
is "and claims nothing" 0 "$(claims /dev/vda)"
dmsetup remove over
try bdsnap verify --all
is "verify" 0 $code
echo 0 >/sys/kernel/tracing/events/watch/enable
echo >/sys/kernel/tracing/kprobe_events
complete
