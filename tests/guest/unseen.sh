#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# unseen.sh [PART...]: what gap is found after writes of each kind, on virtio disks (/dev/vda to vde), scsi_debug, null_blk,
# loop, dm and md. Copies for the host to compare: NAME.a and NAME.b must be equal.

. "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- multipath passthrough failing usual
load raw_idle_s=60
modprobe -a sd_mod sg dm-multipath dm-round-robin dm-flakey raid1
modprobe scsi_debug dev_size_mb=32 lbpu=1 lbpws=1 lbprz=1 delay=0 || die "scsi_debug"
for ((i = 0; i < 100; i++)); do
	scsi=$(cd /sys/bus/pseudo/drivers/scsi_debug && echo adapter*/host*/target*/*/block/*)
	scsi=/dev/${scsi##*/}
	[ ! -b "$scsi" ] || break
	sleep 0.1
done
generic=/dev/$(ls "/sys/block/${scsi##*/}/device/scsi_generic")
address=$(basename "$(readlink -f "/sys/block/${scsi##*/}/device")")

settle() { bdsnap settle --raw || not_ok "settle"; }
put() { dd if=/dev/urandom of="$1" bs=4k seek="$2" count="$3" oflag=direct conv=notrunc,nocreat status=none; }
digest() { dd if="$1" bs=1M iflag=direct status=none | sha256sum; }

# unseen NAME DEVICE GAP COMMAND...: between two sessions the command writes to the device. GAP is what may be said about it.
unseen() {
	local name=$1 device=$2 gap=$3 digest
	shift 3
	activate "$device" || not_ok "$name: activate"
	put "$device" 100 16
	settle
	digest=$(digest "$device")
	"$@" || not_ok "$name: $*"
	differ "$name: it has changed" "$digest" "$(digest "$device")"
	try bdsnap status "$device" --check
	differ "$name: the status complains" 0 $code
	try bdsnap-restore "$device" latest --yes
	is "$name: a restore is refused" 5 $code
	is "$name: because of the gap" yes "$([[ $out =~ gap ]] && echo yes)"
	put "$device" 300 4
	settle
	is "$name: the next session knows" yes "$([[ $(last gap_before "$device") =~ ^($gap)$ ]] && echo yes)"
	deactivate "$device"
}

# ---- Request-based device mapper hands down requests, not bios ----

# by_map DEVICE [FEATURES]: writes to the device through a map of it
by_map() {
	dmsetup create map --table "0 $(blockdev --getsz "$1") multipath ${2-2 queue_mode mq} 0 1 1 round-robin 0 1 1 $1 1000" || return
	dmsetup mknodes
	put /dev/mapper/map 2000 32
	dmsetup remove --retry map
}
by_map_discards() {
	dmsetup create map --table "0 $(blockdev --getsz "$1") multipath 2 queue_mode mq 0 1 1 round-robin 0 1 1 $1 1000" || return
	dmsetup mknodes
	blkdiscard -o 4M -l 2M /dev/mapper/map
	local code=$?
	dmsetup remove --retry map
	return $code
}
without_statistics() {
	echo 0 >"/sys/block/${1##*/}/queue/iostats"
	by_map "$1"
	local code=$?
	echo 1 >"/sys/block/${1##*/}/queue/iostats"
	return $code
}
part_multipath() {
	random 32 /dev/vda
	random 32 "$scsi"
	sync /dev/vda "$scsi"
	unseen "multipath over virtio" /dev/vda written by_map /dev/vda
	unseen "multipath over scsi" "$scsi" written by_map "$scsi"
	unseen "multipath's discards" /dev/vda written by_map_discards /dev/vda
	unseen "multipath, nobody counts" /dev/vda "written|unknown" without_statistics /dev/vda
	# With bios it is a device like any other.
	activate /dev/vda
	put /dev/vda 100 16
	settle
	by_map /dev/vda "2 queue_mode bio"
	settle
	is "multipath by bios: no gap" none "$(last gap_before /dev/vda)"
	is "multipath by bios: recorded" $((32 * 4096)) "$(last saved_bytes /dev/vda)"
	deactivate /dev/vda
}

# ---- SCSI commands by user space ----

by_generic() { sg_dd if="$work/block" of="$generic" bs=512 count=64 seek=20000; }
by_ioctl() { sg_dd if="$work/block" of="$scsi" bs=512 count=64 seek=21000 blk_sgio=1; }
by_bsg() { sg_raw -s 32768 -i "$work/block" "/dev/bsg/$address" 2a 00 00 00 55 f0 00 00 40 00; }
# Without data, so that to the block layer it is no write
by_pattern() { sg_write_same --16 --ndob --lba=23000 --num=64 "$generic"; }
by_unmap() { sg_unmap --lba=24000 --num=64 --force "$generic" || sg_unmap --lba=24000 --num=64 "$generic"; }
part_passthrough() {
	random 32 "$scsi"
	sync "$scsi"
	dd if=/dev/urandom of="$work/block" bs=32k count=1 status=none
	unseen "sg" "$scsi" "written|unknown" by_generic
	unseen "SG_IO" "$scsi" "written|unknown" by_ioctl
	unseen "bsg" "$scsi" "written|unknown" by_bsg
	unseen "a command without data" "$scsi" "written|unknown" by_pattern
	unseen "unmap" "$scsi" "written|unknown" by_unmap
	# What udev and smartd ask each disk all the time
	activate "$scsi"
	put "$scsi" 100 16
	settle
	sg_inq "$generic" >/dev/null
	sg_vpd "$generic" >/dev/null
	sg_turs "$generic"
	sg_readcap "$generic" >/dev/null
	sg_logs "$generic" >/dev/null
	sg_modes "$generic" >/dev/null
	sg_sync "$generic"
	sg_dd if="$generic" of=/dev/null bs=512 count=64 2>/dev/null
	blockdev --flushbufs --rereadpt "$scsi"
	put "$scsi" 300 4
	settle
	is "commands that only ask: no gap" none "$(last gap_before "$scsi")"
	# Of a disk behind libata: SANITIZE DEVICE, without data. This one does not know it; that it was asked to is enough.
	sg_raw "$generic" 85 06 00 00 00 11 00 00 00 00 00 00 00 00 b4 00
	put "$scsi" 500 4
	settle
	is "an ATA command without data: the next session knows" written "$(last gap_before "$scsi")"
	deactivate "$scsi"
}

# ---- Writes that fail ----

part_failing() {
	local disk=/dev/vdb device=/dev/mapper/flaky length
	length=$(blockdev --getsz $disk)
	random 32 $disk
	sync $disk
	dmsetup create flaky --table "0 $length linear $disk 0" || die "dmsetup"
	dmsetup mknodes
	activate $device
	copy $disk failing.b
	put $device 100 16
	settle
	switch flaky "0 $length flakey $disk 0 0 60 1 error_writes" || not_ok "dm-flakey"
	put $device 500 16 && not_ok "failing: the disk writes"
	dd if=/dev/urandom of=$device bs=4k seek=600 count=16 conv=fsync,notrunc,nocreat status=none && not_ok "failing: the disk writes from the cache"
	settle
	switch flaky "0 $length linear $disk 0"
	# Past the end, by somebody who knows no better
	put $device $((length / 8)) 1 && not_ok "past the end: written"
	put $device 300 4
	settle
	echo "failing: gaps $(column gap_before $device), states $(column state $device)"
	is "failing: nothing is said that was not" "" "$(column gap_before $device | tr ' ' '\n' | grep -vxE 'none|unknown')"
	try bdsnap-restore $device "$(column name $device | cut -d ' ' -f 1)" --yes
	if [ $code = 0 ]; then
		copy $disk failing.a
	else
		is "failing: a restore is refused, or right" 5 $code
		rm /host/failing.b
	fi
	deactivate $device
	dmsetup remove flaky
}

# ---- The usual ----

# usual NAME DEVICE [FILE-SYSTEMS'-DEVICE [OTHERS...]]: all that people do to a disk. The OTHERS are written as well.
usual() {
	local name=$1 device=$2 holder=${3:-$2} other all began gaps
	all=("$device" "${@:4}")
	[ "$holder" = "$device" ] || all+=("$holder")
	copy "$device" "$name.b"
	# The chain may be older; how it goes on is what counts.
	began=$(list "sessions.#" "$device")
	activate "$device" || not_ok "$name: activate"
	put "$device" 600 16
	settle
	for other in "${all[@]}"; do
		put "$other" 900 32
		dd if=/dev/urandom of="$other" bs=64k seek=30 count=8 conv=notrunc,nocreat,fsync status=none
		dd if=/dev/urandom of="$other" bs=4k seek=1500 count=4 oflag=direct,sync conv=notrunc,nocreat status=none
		dd if=/dev/urandom of="$other" bs=512 seek=7777 count=3 oflag=sync conv=notrunc,nocreat status=none
		blkdiscard -f -o 4M -l 1M "$other"
		blkdiscard -f -z -o 6M -l 1M "$other"
	done
	settle
	make_fs ext4 "$holder" || not_ok "$name: mkfs"
	settle
	mount -o discard "$holder" /mnt || not_ok "$name: mount"
	bdsnap-testtool work /mnt/work 1 1 >/dev/null || not_ok "$name: load"
	for other in "${@:4}"; do put "$other" 1000 16; done
	rm -r /mnt/work
	sync
	fstrim /mnt
	umount /mnt
	e2fsck -fy "$holder" >/dev/null
	tune2fs -L usual "$holder" >/dev/null
	settle
	try bdsnap-restore "$device" latest --yes
	is "$name: restore" 0 $code
	put "$device" 700 16
	settle
	gaps=$(column gap_before "$device" | cut -d " " -f $((began + 2))-)
	echo "$name: $(column kind "$device" | cut -d " " -f $((began + 1))-), gaps $gaps"
	is "$name: no gap between any of these sessions" "" "$(tr " " "\n" <<<"$gaps" | grep -vx none)"
	try bdsnap status "$device" --check
	is "$name: nothing to complain of" 0 $code
	try bdsnap-restore "$device" "$(list "sessions.$began.name" "$device")" --yes
	is "$name: restore to the first" 0 $code
	copy "$device" "$name.a"
	deactivate "$device"
}
part_usual() {
	local loop
	random 32 /dev/vdc
	usual virtio /dev/vdc
	# The same bytes by their disk, by their partition and by another partition that nobody watches
	printf 'label: dos\n,15M,L\n,,L\n' | sfdisk -q /dev/vdd
	partprobe /dev/vdd 2>/dev/null || blockdev --rereadpt /dev/vdd
	usual disk /dev/vdd /dev/vdd1 /dev/vdd2
	usual partition /dev/vdd1 /dev/vdd1 /dev/vdd2
	usual scsi "$scsi"
	printf "%s linear /dev/vde %s\n" "0 30000" 30000 "30000 30000" 0 | dmsetup create two || die "dmsetup"
	dmsetup mknodes
	usual linear /dev/mapper/two
	dmsetup remove two
	mdadm --quiet --create /dev/md1 --run --level=1 --raid-devices=2 --metadata=1.2 /dev/vda /dev/vdb || die "mdadm"
	# Else it depends on the leg what is read.
	mdadm --wait /dev/md1
	[ -e /dev/md1 ] || mknod /dev/md1 b 9 1
	usual md /dev/md1
	mdadm --quiet --stop /dev/md1
	truncate -s 32M "$work/image"
	loop=$(losetup -f --show "$work/image")
	usual loop "$loop"
	losetup -d "$loop"
	modprobe null_blk nr_devices=0 || die "null_blk"
	mkdir /sys/kernel/config/nullb/nullb0 2>/dev/null ||
		{ mount -t configfs configfs /sys/kernel/config && mkdir /sys/kernel/config/nullb/nullb0; } || die "null_blk"
	(
		cd /sys/kernel/config/nullb/nullb0 || exit
		echo 32 >size
		echo 1 >memory_backed
		echo 1 >discard
		echo 1 >power
	)
	usual null /dev/nullb0
	echo 0 >/sys/kernel/config/nullb/nullb0/power
	rmdir /sys/kernel/config/nullb/nullb0
}

for part; do "part_$part"; done
for name in $(bdsnap status --json | jq -r '.devices[].device'); do deactivate "$name"; done
try bdsnap verify --all
is "verify" 0 $code
complete
