#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# teardown.sh [PART...]: registered devices are written and taken down at once, again and again, each kind beside the others:
# dm on /dev/vda, md on vdb and vdc, loop, partitions of vdd, a medium of scsi_debug. Then some that are slow, on vde and vdf.

. "$(dirname "$0")/lib.sh"
rounds=100
[ $# -gt 0 ] || set -- quick slow
load
modprobe -a raid1 dm-delay sd_mod
modprobe scsi_debug dev_size_mb=32 removable=1 delay=0 || die "scsi_debug"
for ((i = 0; i < 100; i++)); do
	medium=$(cd /sys/bus/pseudo/drivers/scsi_debug && echo adapter*/host*/target*/*/block/*)
	medium=/dev/${medium##*/}
	[ ! -b "$medium" ] || break
	sleep 0.1
done

settle() { bdsnap settle --raw || not_ok "settle"; }
forget() {
	local name
	for name in $(bdsnap status --json | jq -r ".devices[].device"); do deactivate "$name"; done
}

# Of each kind: WHAT_up makes it and sets `device`, WHAT_down takes it down in one go, without another try.
dm_up() {
	dmsetup create plain --table "0 65536 linear /dev/vda 0" && dmsetup mknodes
	device=/dev/mapper/plain
}
dm_down() { dmsetup remove plain; }
md_up() {
	local i
	# The kernel removes it a moment after it was cleared.
	for ((i = 0; i < 100; i++)); do
		[ -e /sys/block/md7 ] || break
		sleep 0.05
	done
	device=/dev/md7
	for ((i = 0; i < 20; i++)); do
		mdadm --quiet --assemble /dev/md7 /dev/vdb /dev/vdc && return
		sleep 0.1
	done
	return 1
}
# Not by mdadm, which tries for five seconds.
md_down() { echo clear >/sys/block/md7/md/array_state; }
loop_up() {
	device=$work/image
	loop=$(losetup --show -f "$device")
}
# A loop device that somebody has open goes when that one lets go.
loop_down() {
	losetup -d "$loop"
	[ ! -e "/sys/block/${loop##*/}/loop/backing_file" ]
}
disk_up() { device=/dev/vdd; }
disk_down() { blockdev --rereadpt /dev/vdd; }
partition_up() { device=/dev/vdd1; }
partition_down() { blockdev --rereadpt /dev/vdd; }
medium_up() {
	sg_start --start "$medium"
	device=$medium
}
medium_down() { eject "$medium"; }

# kind WHAT: all its rounds; how many failed of how many
kind() {
	local what=$1 failures=0 done=0 i pause tries
	for pause in $(yes 0 | head -n "$rounds") 0.3 0.3 0.7 0.7 1.5 1.5; do
		"${what}_up" || not_ok "$what: made anew"
		# What udev says when one comes
		bdsnap settle || not_ok "$what: settle"
		dd if=/dev/urandom of="${loop:-$device}" bs=1M seek=8 count=4 oflag=direct conv=notrunc,nocreat status=none || not_ok "$what: written"
		[ "$pause" = 0 ] || sleep "$pause"
		done=$((done + 1))
		if ! "${what}_down"; then
			echo "$what: not taken down, after $pause s"
			failures=$((failures + 1))
			for ((tries = 0; tries < 100; tries++)); do
				sleep 0.1
				"${what}_down" && break
			done
		fi
	done
	is "$what: not taken down at once, of $done" 0 "$failures"
}

# ---- Quick ones ----

part_quick() {
	local what jobs=() loop=""
	mdadm --quiet --create /dev/md7 --run --level=1 --raid-devices=2 --metadata=1.2 --bitmap=none --assume-clean /dev/vdb /dev/vdc ||
		die "mdadm"
	truncate -s 32M "$work/image"
	printf 'label: dos\n,32M,L\n,,L\n' | sfdisk -q /dev/vdd
	for what in dm loop disk partition medium; do
		loop=''
		"${what}_up"
		activate "$device" || die "$what: activate"
		"${what}_down" || not_ok "$what: taken down without having been written"
	done
	activate /dev/md7
	md_down
	loop=
	# The disk's own and its partition's rounds would be in each other's way.
	for what in dm md loop medium; do
		kind $what &
		jobs+=($!)
	done
	{
		rounds=$((rounds / 2))
		kind disk
		kind partition
	} &
	jobs+=($!)
	wait "${jobs[@]}"
	forget
	is "what was written before is recorded: sessions that are not whole" 0 \
		"$(bdsnap list --json | jq '[.sessions[] | select(.state == "broken")] | length')"
}

# ---- Slow ones: what is read ahead is under way when they go ----

# slow_loop IMAGE: written and detached, again and again. Through the page cache its reads stand in a queue; one of the
# lengths ends just where more is read ahead.
slow_loop() {
	local loop i
	for i in 1 2 3 4 5 6; do
		echo 3 >/proc/sys/vm/drop_caches
		loop=$(losetup --show -f "$1") || not_ok "a slow loop device: attached"
		bdsnap settle
		dd if=/dev/urandom of="$loop" bs=1M count=$((15 + i)) oflag=direct conv=notrunc,nocreat status=none || not_ok "a slow loop device: written"
		losetup -d "$loop" || not_ok "a slow loop device: detached"
	done
}
top_up() { dmsetup create top --table "0 98304 linear /dev/mapper/slow-vdf 0" && dmsetup mknodes; }
slow_dm() {
	local i
	for i in 1 2 3 4 5 6; do
		top_up || not_ok "a slow mapping: made"
		bdsnap settle
		dd if=/dev/urandom of=/dev/mapper/top bs=1M count=16 oflag=direct conv=notrunc,nocreat status=none ||
			not_ok "a slow mapping: written"
		dmsetup remove top || {
			not_ok "a slow mapping: removed"
			dmsetup remove --retry top
		}
	done
}
part_slow() {
	local disk sectors mapping
	make_fs ext4 /dev/vde
	for disk in vde vdf; do
		sectors=$(blockdev --getsz /dev/$disk)
		# Reads take 100 ms, writes their time.
		dmsetup create slow-$disk --table "0 $sectors delay /dev/$disk 0 100 /dev/$disk 0 0" || die "dm-delay"
		dmsetup mknodes
		blockdev --setra 1024 /dev/mapper/slow-$disk
	done
	mkdir "$work/slow"
	mount /dev/mapper/slow-vde "$work/slow" || die "mount"
	random 48 "$work/slow/image"
	sync
	activate "$work/slow/image"
	top_up
	activate /dev/mapper/top
	dmsetup remove top || not_ok "a slow mapping: removed, never written"
	slow_dm &
	mapping=$!
	slow_loop "$work/slow/image"
	wait $mapping
	settle
	umount "$work/slow" || not_ok "what is below the loop device is free"
	dmsetup remove slow-vde || not_ok "what is below the file system is free"
	dmsetup remove slow-vdf || not_ok "what is below the mapping is free"
	is "none is held, none recording" "0 0" "$(status module.live.bios) $(status module.sessions)"
	forget
}

for part; do "part_$part"; done
complete
