#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# figures.sh: what does not depend on other contenders, in a guest whose clock counts instructions: mounts with
# few and many registrations, growth with the device's size and with what is saved, the tools. Each figure
# is a line `NAME VALUE UNIT` in /host/figures.

. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"
figure() { echo "$*" | tee -a /host/figures; }
us=0
: >/host/figures

nullb store 1500
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/store
mount -o noatime /dev/store /snapshot
chmod 700 /snapshot
make() { mkfs.ext4 -q -F -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$1"; }
remove_sessions() { rm -rf /snapshot/*_*Z* /snapshot/.bdsnap-chain /snapshot/.bdsnap-history; }

# ---- Mounts: 0, 1 and 1000 registrations ----

nullb origin 512
make /dev/origin
mounted() {
	microseconds mount -o noatime /dev/origin /mnt
	figure "mount_$1" $us us
	# The first write makes the session's files.
	microseconds dd if=/dev/zero of=/mnt/file bs=4k count=1 oflag=direct,sync status=none
	figure "first_write_$1" $us us
	sync -f /mnt
	microseconds umount /mnt
	figure "unmount_$1" $us us
}
# Once for what is loaded on demand
mount /dev/origin /mnt
umount /mnt
mounted plain
load min_free_mib=16
mounted 0_registrations
activate /dev/origin
mounted 1_registration
rmmod bdsnap
mkdir -p /etc/bdsnap
{
	for ((i = 1; i < 1000; i++)); do echo "/dev/disk/by-uuid/not-there-$i"; done
	echo /dev/origin
} >/etc/bdsnap/devices
chmod 600 /etc/bdsnap/devices
microseconds load min_free_mib=16
figure load_1000_registrations $us us
mounted 1000_registrations
rm /etc/bdsnap/devices
rmmod bdsnap
remove_sessions

# ---- Growth with the device ----

load min_free_mib=16
for gib in 1 64 1024 8192; do
	nullb big $((gib << 10))
	mkfs.xfs -q -f -K /dev/big || not_ok "mkfs of $gib GiB"
	microseconds mount /dev/big /mnt
	figure "mount_xfs_${gib}_gib_plain" $us us
	microseconds umount /mnt
	figure "unmount_xfs_${gib}_gib_plain" $us us
	activate /dev/big
	microseconds mount /dev/big /mnt
	figure "mount_xfs_${gib}_gib" $us us
	figure "set_${gib}_gib" "$(status devices.0.saved_set_bytes /dev/big)" bytes
	microseconds umount /mnt
	figure "unmount_xfs_${gib}_gib" $us us
	deactivate /dev/big
	no_nullb big
	remove_sessions
done

# ---- Growth with what is saved; restore against dd ----

# phase NAME: seconds that it took, from the lines of `bdsnap-restore --json-lines`
phase() { sed -n "s/.*\"phase\":\"$1\".*\"seconds\":\([0-9.e-]*\).*/\1/p" $work/lines | tail -n 1; }
mib_s() { awk -v b="$1" -v s="$2" 'BEGIN { printf "%.1f", b / 1048576 / s }'; }
for mib in 4 32 256; do
	for how in write randwrite; do
		fio --name=fill --allow_mounted_write=1 --filename=/dev/origin --ioengine=libaio --iodepth=32 --direct=1 --rw=write --bs=64k --size=320M \
			--offset=128M --output=/dev/null --thread
		mkfs.ext4 -q -F -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard /dev/origin 64M
		activate /dev/origin
		mount -o noatime /dev/origin /mnt
		fio --name=change --allow_mounted_write=1 --filename=/dev/origin --ioengine=libaio --iodepth=32 --direct=1 --rw=$how --bs=$([ $how = write ] && echo 64k || echo 4k) \
			--size=320M --io_size=${mib}M --offset=128M --output=/dev/null --thread
		figure "set_after_${how}_$mib" "$(status devices.0.saved_set_bytes /dev/origin)" bytes
		figure "memory_peak_${how}_$mib" "$(status module.memory_peak_bytes)" bytes
		microseconds umount /mnt
		figure "unmount_${how}_$mib" $us us
		session=$(echo /snapshot/origin_*Z)
		bytes=$(list sessions.0.saved_bytes)
		figure "stored_${how}_$mib" $(($(stat -c %s "$session/blocks.dat") + $(stat -c %s "$session/blocks.map"))) bytes
		figure "saved_${how}_$mib" "$bytes" bytes
		echo 3 >/proc/sys/vm/drop_caches
		microseconds bdsnap verify --all
		figure "verify_${how}_$mib" "$(mib_s "$bytes" "$(awk "BEGIN { print $us / 1e6 }")")" MiB/s
		dat=$session/blocks.dat
		cp --reflink=never "$dat" /tmp/dat
		microseconds bdsnap-restore /dev/origin latest --yes --no-undo --json-lines >$work/lines
		figure "restore_${how}_$mib" "$(mib_s "$bytes" "$(awk "BEGIN { print $us / 1e6 }")")" MiB/s
		figure "restore_write_${how}_$mib" "$(mib_s "$bytes" "$(phase restore)")" MiB/s
		deactivate /dev/origin
		remove_sessions
		# The same bytes by dd, from a file of the same disk. In pieces, if they were in pieces.
		cp --reflink=never /tmp/dat /snapshot/dat
		rm /tmp/dat
		sync
		echo 3 >/proc/sys/vm/drop_caches
		microseconds dd if=/snapshot/dat of=/dev/origin bs=1M seek=128 oflag=direct conv=fsync,notrunc status=none
		figure "dd_${how}_$mib" "$(mib_s "$bytes" "$(awk "BEGIN { print $us / 1e6 }")")" MiB/s
		rm /snapshot/dat
	done
done

# ---- The tools with many sessions ----

for n in 100 10000; do
	bdsnap-bench sessions /snapshot $n || not_ok "$n sessions"
	sync
	echo 3 >/proc/sys/vm/drop_caches
	microseconds bdsnap list >$work/list
	is "$n listed" $n "$(grep -c closed $work/list)"
	figure "list_$n" $us us
	microseconds bdsnap list --json >/dev/null
	figure "list_json_warm_$n" $us us
	microseconds bdsnap-prune --keep-last $((n / 2)) --keep-monthly 12 >/dev/null
	figure "prune_plan_$n" $us us
	microseconds bdsnap-prune --keep-last $((n / 2)) --trash 0 --apply >/dev/null
	figure "prune_apply_half_of_$n" $us us
	is "left of $n" $((n / 2)) "$(bdsnap list | grep -c closed)"
	remove_sessions
done
complete
