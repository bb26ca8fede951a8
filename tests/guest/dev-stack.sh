#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-stack.sh FS: device-mapper and md, registered on top, one after the other on the same disks
# (/dev/vda to vdc), with this file system.

. "$(dirname "$0")/lib.sh"
fs=$1
load
sectors=$(blockdev --getsz /dev/vda)
half=$((sectors / 2))

# clean: nothing of the one before is left on the disks, and nothing registered
clean() {
	for disk in /dev/vda /dev/vdb /dev/vdc; do wipefs -aq $disk; done
	must "nothing is registered" 0 "$(status 'devices.#')"
}

modprobe -a dm-crypt raid1 raid456 dm-thin-pool

export LVM_SUPPRESS_FD_WARNINGS=1
# In two pieces, the second half of the disk first
printf '0 %s linear /dev/vda %s\n%s %s linear /dev/vda 0\n' $half $half $half $half | dmsetup create swapped || die "dmsetup"
dmsetup mknodes
round "linear-$fs" "$fs" /dev/mapper/swapped
deactivate /dev/mapper/swapped
dmsetup remove swapped
clean

printf 'secret' >"$work/key"
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vda "$work/key" || die "luksFormat"
cryptsetup open --key-file "$work/key" /dev/vda plain || die "cryptsetup open"
dmsetup mknodes
round "crypt-$fs" "$fs" /dev/mapper/plain
deactivate /dev/mapper/plain
cryptsetup close plain
clean

pvcreate -qq /dev/vda /dev/vdb || die "pvcreate"
vgcreate -qq group /dev/vda /dev/vdb || die "vgcreate"
lvcreate -qq -Zn -Wn -i 2 -l 90%FREE -n striped group || die "lvcreate"
dmsetup mknodes
vgmknodes -qq
round "lvm-$fs" "$fs" /dev/group/striped
deactivate /dev/group/striped
lvremove -qqf group/striped
lvcreate -qq --type thin-pool -l 80%FREE --poolmetadatasize 4M -n pool group || die "thin pool"
lvcreate -qq -Wn -V 360M --thinpool pool -n thin group || die "thin volume"
vgmknodes -qq
round "thin-$fs" "$fs" /dev/group/thin
deactivate /dev/group/thin
vgremove -qqf group
pvremove -qq /dev/vda /dev/vdb
clean

mdadm --quiet --create /dev/md1 --run --level=1 --raid-devices=2 --metadata=1.2 /dev/vda /dev/vdb || die "RAID1"
round "raid1-$fs" "$fs" /dev/md1
deactivate /dev/md1
mdadm --quiet --stop /dev/md1
mdadm --quiet --zero-superblock /dev/vda /dev/vdb
clean

mdadm --quiet --create /dev/md5 --run --level=5 --raid-devices=3 --metadata=1.2 /dev/vda /dev/vdb /dev/vdc || die "RAID5"
round "raid5-$fs" "$fs" /dev/md5
# With a disk missing, after what is written has its parity
mdadm --quiet --fail /dev/md5 /dev/vdb || not_ok "RAID5: fail a disk"
session_on "degraded-$fs" "$fs" /dev/md5 2
deactivate /dev/md5
mdadm --quiet --stop /dev/md5
mdadm --quiet --zero-superblock /dev/vda /dev/vdb /dev/vdc
clean
try bdsnap verify --all
is "verify" 0 $code
complete
