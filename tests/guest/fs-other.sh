#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# ntfs-3g on /dev/vda, a file system in user space: its process writes to the device before the mount and
# after the unmount as well. And btrfs on /dev/vdb, which takes and gives back /dev/vdc meanwhile.

. "$(dirname "$0")/lib.sh"
load
modprobe fuse

# first DEVICE: its first session
first() { column name "$1" | cut -d ' ' -f 1; }
# chain NAME DEVICE: nothing is missing in it
chain() {
	bdsnap settle --raw || not_ok "$1: settle"
	bdsnap list "$2"
	is "$1: all closed" "closed" "$(column state "$2" | tr ' ' '\n' | sort -u | paste -sd ' ')"
	is "$1: no gaps" "none" "$(column gap_before "$2" | tr ' ' '\n' | sort -u | paste -sd ' ')"
	copy "$2" "$1.1"
	try bdsnap-restore "$2" "$(first "$2")" --yes --alone
	is "$1: restore to the first session" 0 $code
	copy "$2" "$1.2"
}

device=/dev/vda
mkntfs -q -Q -F $device >/dev/null || die "mkntfs"
sync
copy $device fuse.0
activate $device
for seed in 1 2; do
	ntfs-3g $device /mnt || die "ntfs-3g"
	is "ntfs-3g: a mount" mount "$(status devices.0.raw $device | sed 's/false/mount/;s/true/raw/')"
	bdsnap-testtool work /mnt/work $seed 1 || not_ok "ntfs-3g: load"
	umount /mnt
	for _ in $(seq 100); do pgrep -x ntfs-3g >/dev/null || break; sleep 0.2; done
	is "ntfs-3g has ended" "" "$(pgrep -x ntfs-3g)"
done
atleast "ntfs-3g: sessions of mounts" 2 "$(column kind $device | grep -o mount | wc -l)"
chain fuse $device
deactivate $device

make_fs btrfs /dev/vdb
random 1 "$work/old"
dd if="$work/old" of=/dev/vdc bs=1M seek=20 conv=notrunc,fsync status=none
sync
copy /dev/vdb taker.0
copy /dev/vdc taken.0
activate /dev/vdb
activate /dev/vdc
mount /dev/vdb /mnt
load_on /mnt 1 2
btrfs device add -f -K /dev/vdc /mnt >/dev/null || not_ok "btrfs device add"
load_on /mnt 2 2
# Everything moves to the new one, and back.
btrfs device remove /dev/vdb /mnt || not_ok "btrfs device remove, the first"
load_on /mnt 3 1
btrfs device add -f -K /dev/vdb /mnt >/dev/null || not_ok "btrfs device add, again"
btrfs device remove /dev/vdc /mnt || not_ok "btrfs device remove, the second"
is "given back: its session is over" false "$(status devices.0.recording /dev/vdc)"
load_on /mnt 4 1
umount /mnt
chain taker /dev/vdb
chain taken /dev/vdc
try bdsnap verify --all
is "verify" 0 $code
complete
