#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-names.sh, with udev running: devices by names that are links, that are not there yet, and that
# change. Disks vda to vdf.

. "$(dirname "$0")/lib.sh"
load
unset DM_DISABLE_UDEV

# small NAME DEVICE: a session, with what is there before and after
small() {
	mount "$2" /mnt || not_ok "$1: mount"
	random 1 "/mnt/$RANDOM" || not_ok "$1: write"
	umount /mnt
}
# back NAME REGISTERED DEVICE: its newest session is restored
back() {
	copy "$3" "$1.1"
	is "$1: its session" "mount closed" "$(last kind "$2") $(last state "$2")"
	try bdsnap-restore "$2" latest --yes
	is "$1: restore" 0 $code
	copy "$3" "$1.2"
}
# begin NAME DEVICE
begin() { copy "$2" "$1.0"; }

# ---- Links ----

make_fs ext4 /dev/vda
udevadm trigger --settle /dev/vda
uuid=$(blkid -p -s UUID -o value /dev/vda)
by_uuid=/dev/disk/by-uuid/$uuid
is "by-uuid: there is a link" /dev/vda "$(readlink -f "$by_uuid")"
begin by-uuid /dev/vda
activate "$by_uuid"
activate /dev/vda
is "by-uuid: one registration for two names" 1 "$(status 'devices.#')"
small by-uuid /dev/vda
back by-uuid "$by_uuid" /dev/vda
is "by-uuid: found by the device's own name as well" 1 "$(column kind /dev/vda | grep -o mount | wc -l)"
deactivate /dev/vda
is "by-uuid: deactivated by the other name" 0 "$(status 'devices.#')"

printf 'label: gpt\n2048,40000\n,\n' | sfdisk -q /dev/vdb
udevadm settle
make_fs ext4 /dev/vdb2
udevadm trigger --settle /dev/vdb2
by_partuuid=/dev/disk/by-partuuid/$(blkid -p -s PART_ENTRY_UUID -o value /dev/vdb2)
is "by-partuuid: there is a link" /dev/vdb2 "$(readlink -f "$by_partuuid")"
begin by-partuuid /dev/vdb2
activate "$by_partuuid"
small by-partuuid /dev/vdb2
back by-partuuid "$by_partuuid" /dev/vdb2
deactivate "$by_partuuid"

# ---- Names that are not there yet ----

make_fs ext4 /dev/vdc
sync
# table NAME DEVICE
table() { dmsetup create "$1" --table "0 $(blockdev --getsz "$2") linear $2 0"; }
begin mapper /dev/vdc
try activate /dev/mapper/late
is "absent: can be registered" 0 $code
is "absent: is so" false "$(status devices.0.present /dev/mapper/late)"
table late /dev/vdc
udevadm settle
is "it has come: udev has told" true "$(status devices.0.present /dev/mapper/late)"
small mapper /dev/mapper/late
back mapper /dev/mapper/late /dev/vdc
dmsetup remove late
udevadm settle
deactivate /dev/mapper/late

# A link that comes later, and nobody tells: the claim itself looks
wipefs -aq /dev/vdd
udevadm settle # or what udev has to say of this comes after the link
uuid=$(cat /proc/sys/kernel/random/uuid)
activate "/dev/disk/by-uuid/$uuid"
udevadm control --stop-exec-queue
mkfs.ext4 -q -F -U "$uuid" /dev/vdd
sync
mkdir -p /dev/disk/by-uuid
ln -s ../../vdd "/dev/disk/by-uuid/$uuid"
is "a link without notice: not seen yet" false "$(status devices.0.present)"
begin link /dev/vdd
small link /dev/vdd
back link "/dev/disk/by-uuid/$uuid" /dev/vdd
udevadm control --start-exec-queue
deactivate "/dev/disk/by-uuid/$uuid"

# ---- Names that change ----

for disk in vde vdf; do
	make_fs ext4 /dev/$disk
	udevadm trigger --settle /dev/$disk
done
e=/dev/disk/by-uuid/$(blkid -p -s UUID -o value /dev/vde)
f=/dev/disk/by-uuid/$(blkid -p -s UUID -o value /dev/vdf)
ve=$(basename "$(readlink -f /sys/block/vde/device)")
vf=$(basename "$(readlink -f /sys/block/vdf/device)")
begin renamed-e /dev/vde
begin renamed-f /dev/vdf
activate "$e"
activate "$f"
small e "$e"
small f "$f"
# They come back in another order
for virtio in "$ve" "$vf"; do echo "$virtio" >/sys/bus/virtio/drivers/virtio_blk/unbind; done
udevadm settle
for virtio in "$vf" "$ve"; do echo "$virtio" >/sys/bus/virtio/drivers/virtio_blk/bind; done
udevadm settle
moved() { [ "$(readlink -f "$e")" != /dev/vde ] && [ "$(readlink -f "$f")" != /dev/vdf ]; }
moved || not_ok "renamed: they are where they were"
small e "$e"
small f "$f"
for name in e f; do
	link=${!name}
	is "renamed, $name: two sessions, the second's link unknown" "none unknown" "$(column gap_before "$link")"
	copy "$link" "renamed-$name.1"
	try bdsnap-restore "$link" latest~1 --yes
	is "renamed, $name: nobody watched in between" 5 $code
	try bdsnap-restore "$link" latest~1 --yes --accept-gap
	is "renamed, $name: restore to the first session" 0 $code
	copy "$link" "renamed-$name.2"
done
try bdsnap verify --all
is "verify" 0 $code
complete
