#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# asleep-reboot.sh hibernate LAYOUT: an async session on /dev/vdb, with a store on /dev/vda2; hibernates to vda1 while
# much is in memory and the store is slow. After it has resumed it looks at both. Results go to vdc, as text: neither
# the channel to the host nor its folder outlasts this.
# asleep-reboot.sh resume: in the kernel that loads the image.

. "$(dirname "$0")/lib.sh"

# After the image is loaded the shell can read no further line of this file: functions only.
slept() {
	local sectors
	echo reboot >/sys/power/disk
	bdsnap-cut mark /dev/vda3 hibernate || not_ok "mark"
	echo disk >/sys/power/state || not_ok "hibernation: refused"
	sectors=$(blockdev --getsz /dev/vda2)
	switch store "0 $sectors linear /dev/vda2 0"
	is "resumed: the session is broken" "broken 125" "$(status devices.0.state /dev/vdb) $(status devices.0.errno /dev/vdb)"
	dd if=/dev/urandom of=/mnt/file bs=1M count=1 conv=notrunc oflag=direct status=none || not_ok "resumed: writes go on"
	umount /mnt || not_ok "resumed: umount"
	is "resumed: and the store says so" "broken 125" "$(last state /dev/vdb) $(last errno /dev/vdb)"
	mount /dev/vdb /mnt || not_ok "resumed: mount"
	dd if=/dev/urandom of=/mnt/file bs=1M count=2 conv=notrunc oflag=direct status=none
	umount /mnt || not_ok "resumed: umount"
	is "resumed: the next session" closed "$(last state /dev/vdb)"
	try bdsnap verify --all
	is "resumed: verify" 0 $code
	deactivate /dev/vdb
	rmmod bdsnap || not_ok "rmmod"
	umount /snapshot || not_ok "resumed: umount of the store"
	try e2fsck -fn /dev/mapper/store
	is "resumed: the store's file system is whole" 0 $code
	echo complete
}

hibernate() {
	local origin store marks end sectors
	IFS=, read -r origin store marks end <<<"$1"
	sfdisk -q /dev/vda <<-END || die "sfdisk"
		label: dos
		start=${origin}MiB, size=$((store - origin))MiB
		start=${store}MiB, size=$((marks - store))MiB
		start=${marks}MiB, size=$((end - marks))MiB
	END
	for ((i = 0; i < 50; i++)); do
		[ ! -b /dev/vda3 ] || break
		sleep 0.1
	done
	{ mkswap -q /dev/vda1 && swapon /dev/vda1; } || die "swap"
	# As much as there is: not a page of it is to be swapped out for the image.
	echo $((1 << 30)) >/sys/power/image_size
	sectors=$(blockdev --getsz /dev/vda2)
	dmsetup create store --table "0 $sectors linear /dev/vda2 0" || die "dmsetup"
	dmsetup mknodes
	# A journal's thread freezes, and with it most of what would be written too late.
	mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0 /dev/mapper/store
	mount /dev/mapper/store /snapshot || die "no store"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/vdb
	mount /dev/vdb /mnt
	random 32 /mnt/file
	umount /mnt
	sync
	load mem_limit_mib=64
	activate /dev/vdb --durability async
	mount /dev/vdb /mnt || not_ok "mount"
	dd if=/dev/urandom of=/mnt/file bs=1M count=1 conv=notrunc oflag=direct status=none
	sync
	switch store "0 $sectors delay /dev/vda2 0 0 /dev/vda2 0 5000"
	dd if=/dev/urandom of=/mnt/file bs=1M seek=2 count=24 conv=notrunc oflag=direct status=none
	slept >"$work/results" 2>&1 3>&1
	dd if="$work/results" of=/dev/vdc bs=1M conv=notrunc,fsync 2>/dev/null
	busybox reboot -f
	sleep 100
}

resume() {
	local number
	number=$(cat /sys/class/block/vda1/dev)
	# It does not come back.
	echo "$number" >/sys/power/resume
	die "there is no image"
}

case $1 in
hibernate) hibernate "$2" ;;
resume) resume ;;
esac
