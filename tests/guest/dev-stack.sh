#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-stack.sh FS KIND...: kinds of devices, each registered on top, one after the other on the same disks
# (/dev/vda to vdc), with this file system. The host judges them by `restored KIND-FS`.

. "$(dirname "$0")/lib.sh"
fs=$1
shift
load
modprobe -a dm-crypt raid1 raid456 dm-thin-pool
export LVM_SUPPRESS_FD_WARNINGS=1
sectors=$(blockdev --getsz /dev/vda)
half=$((sectors / 2))

# on KIND DEVICE: a round on it
on() {
	round "$1-$fs" "$fs" "$2"
	deactivate "$2"
}

with_disk() { on disk /dev/vda; }
with_partition() {
	printf 'label: gpt\n,8M\n,\n' | sfdisk -q /dev/vda
	partprobe /dev/vda 2>/dev/null
	on partition /dev/vda2
}
with_loop() {
	local loop
	truncate -s $((sectors * 512)) "$work/image"
	loop=$(losetup -f --show "$work/image")
	on loop "$loop"
	losetup -d "$loop"
	rm "$work/image"
}
# In two pieces, the second half of the disk first
with_linear() {
	printf '0 %s linear /dev/vda %s\n%s %s linear /dev/vda 0\n' $half $half $half $half | dmsetup create swapped || die "dmsetup"
	dmsetup mknodes
	on linear /dev/mapper/swapped
	dmsetup remove swapped
}
with_crypt() {
	printf 'secret' >"$work/key"
	cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vda "$work/key" || die "luksFormat"
	cryptsetup open --key-file "$work/key" /dev/vda plain || die "cryptsetup open"
	dmsetup mknodes
	on crypt /dev/mapper/plain
	cryptsetup close plain
}
# group: a volume group of two disks
group() {
	pvcreate -qq /dev/vda /dev/vdb || die "pvcreate"
	vgcreate -qq group /dev/vda /dev/vdb || die "vgcreate"
}
ungroup() {
	vgremove -qqf group
	pvremove -qq /dev/vda /dev/vdb
}
with_lvm() {
	group
	lvcreate -qq -Zn -Wn -i 2 -l 90%FREE -n striped group || die "lvcreate"
	dmsetup mknodes
	vgmknodes -qq
	on lvm /dev/group/striped
	ungroup
}
with_thin() {
	group
	lvcreate -qq --type thin-pool -l 80%FREE --poolmetadatasize 4M -n pool group || die "thin pool"
	lvcreate -qq -Wn -V $((sectors / 20 * 9))k --thinpool pool -n thin group || die "thin volume"
	vgmknodes -qq
	on thin /dev/group/thin
	ungroup
}
with_raid1() {
	mdadm --quiet --create /dev/md1 --run --level=1 --raid-devices=2 --metadata=1.2 /dev/vda /dev/vdb || die "RAID1"
	on raid1 /dev/md1
	mdadm --quiet --stop /dev/md1
	mdadm --quiet --zero-superblock /dev/vda /dev/vdb
}
with_raid5() {
	mdadm --quiet --create /dev/md5 --run --level=5 --raid-devices=3 --metadata=1.2 /dev/vda /dev/vdb /dev/vdc || die "RAID5"
	round "raid5-$fs" "$fs" /dev/md5
	# With a disk missing, after what is written has its parity
	mdadm --quiet --fail /dev/md5 /dev/vdb || not_ok "RAID5: fail a disk"
	session_on "degraded-$fs" "$fs" /dev/md5 2
	deactivate /dev/md5
	mdadm --quiet --stop /dev/md5
	mdadm --quiet --zero-superblock /dev/vda /dev/vdb /dev/vdc
}

for kind; do
	"with_$kind"
	# Nothing of it is left on the disks, and nothing registered.
	for disk in /dev/vda /dev/vdb /dev/vdc; do wipefs -aq $disk; done
	must "nothing is registered" 0 "$(status 'devices.#')"
done
try bdsnap verify --all
is "verify" 0 $code
complete
