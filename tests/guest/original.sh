#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The original module's sessions are made here by comparing devices before and after. Copies for the
# host to compare: NAME.a and NAME.b must be equal.

. "$(dirname "$0")/lib.sh"

# change DEVICE SEED
change() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "$2" 1 || not_ok "$1: load"
	umount /mnt
}
# original SECONDS OLD NEW NAME DEVICE: a session that went from copy OLD to copy NEW
original() { bdsnap-testtool original "/host/$2" "/host/$3" "/snapshot/$4_$1" "$5" || not_ok "original $*"; }

load
now=$(date +%s)

# ---- A disk: two of them, then one of ours ----

device=/dev/vda
make_fs ext4 $device
sync
copy $device state0
change $device 1
copy $device state1
original $((now - 2000)) state0 state1 vda $device
change $device 2
copy $device state2
original $((now - 1000)) state1 state2 vda $device
activate $device
change $device 3
copy $device state3
is "three sessions in their order" "unchecked unchecked closed" "$(column state $device)"
try bdsnap verify --all
is "verified" 0 $code
try bdsnap-restore $device latest~2 --yes
is "over a gap: refused" 5 $code
try bdsnap-restore $device latest~2 --yes --accept-gap
is "to the start of the first" 0 $code
copy $device first.a
cp /host/state0 /host/first.b
try bdsnap-restore $device --undo --yes
is "and back, without a gap" 0 $code
copy $device undo.a
cp /host/state3 /host/undo.b
try bdsnap-restore $device "vda_$((now - 1000))" --to /host/second.a --accept-gap
is "an image of the start of the second" 0 $code
cp /host/state1 /host/second.b

# ---- A partition, under its disk's name ----

device=/dev/vdb
echo 'start=2048' | sfdisk -q $device || not_ok "sfdisk"
partprobe $device 2>/dev/null
for _ in $(seq 50); do [ -b ${device}1 ] && break; sleep 0.1; done
make_fs ext4 ${device}1
sync
copy $device disk.a
copy ${device}1 part0
change ${device}1 4
copy ${device}1 part1
original $((now - 500)) part0 part1 vdb $device
try bdsnap-restore $device "vdb_$((now - 500))" --yes --accept-gap
is "the disk: refused" 5 $code
[[ $out = *partition* ]] || not_ok "the reason: $out"
try bdsnap-restore ${device}1 latest --yes --accept-gap
is "the partition, not named: not found" 3 $code
try bdsnap-restore ${device}1 "vdb_$((now - 500))" --yes --accept-gap
is "the partition, with the session named" 0 $code
copy $device disk.b

# ---- An image ----

make_fs ext4 /dev/vdc
mount /dev/vdc /srv || not_ok "mount"
truncate -s 16M /srv/disk.img
make_fs ext4 /srv/disk.img
cp /srv/disk.img /host/image.b
mount -o loop /srv/disk.img /mnt || not_ok "mount"
random 1 /mnt/file
umount /mnt
cp /srv/disk.img /host/image1
original $((now - 300)) image.b image1 disk.img /srv/disk.img
try bdsnap-restore /srv/disk.img latest --yes --accept-gap
is "an image" 0 $code
cp /srv/disk.img /host/image.a
umount /srv
complete
