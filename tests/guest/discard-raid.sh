#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# discard-raid.sh [PARAMETER=VALUE... | none]: discards on registered devices (/dev/vda to vdg), by each consumer that
# gives them a meaning. `none` is the same without the module, PARAMETERs are the module's: both for whoever wants to see
# what the results are then. Copies for the host to compare: NAME.a and NAME.b must be equal.

. "$(dirname "$0")/lib.sh"
if [ "${1:-}" = none ]; then
	activate() { :; }
	deactivate() { :; }
	bdsnap() { :; }
else
	load "$@"
fi
modprobe -a raid1 raid456 dm-thin-pool

settle() { bdsnap settle --raw || not_ok "settle"; }
# node NAME: of an md device; nobody makes it here
node() { [ -e "/dev/$1" ] || mknod "/dev/$1" b 9 "${1#md}"; }
# blocks DEVICE: hash and number of each 4 KiB block of its MiB 4 to 7, past the caches, a line each
blocks() {
	rm -rf "$work/blocks"
	mkdir "$work/blocks"
	dd if="$1" bs=1M skip=4 count=4 iflag=direct status=none | split -b 4k -a 4 -d - "$work/blocks/"
	(cd "$work/blocks" && md5sum -- *)
}
# scatter DEVICE COUNT SEED: so many random blocks there
scatter() {
	fio --name=scatter --filename="$1" --rw=randwrite --bs=4k --offset=4M --size=4M --number_ios="$2" --randseed="$3" \
		--ioengine=psync --direct=1 --refill_buffers --output=/dev/null || not_ok "writing to $1"
}
# zeros NAME DEVICE MIB COUNT: whether that many MiB from there read as zeros
zeros() {
	local bytes
	bytes=$(dd if="$2" bs=1M skip="$3" count="$4" iflag=direct status=none | tr -d '\0' | wc -c)
	is "$1" 0 "$bytes"
}
# before NAME DEVICE, back NAME DEVICE: to the start of the first session since then; the host compares
before() {
	sessions=$(list "sessions.#" "$2")
	copy "$2" "$1.b"
}
back() {
	try bdsnap-restore "$2" "$(list "sessions.$sessions.name" "$2")" --yes
	is "$1: restore" 0 $code
	copy "$2" "$1.a"
}

# The disks give zeros for what was discarded, else nothing here means anything.
random 8 /dev/vdg
sync /dev/vdg
blkdiscard -o 4M -l 4M /dev/vdg || die "the disks take no discards"
zeros "a disk without the module: discarded is zeros" /dev/vdg 4 4

# ---- RAID5: parity is made for zeros ----

# Without this word of the administrator md sends no discards for RAID5.
echo Y >/sys/module/raid456/parameters/devices_handle_discard_safely
members=(/dev/vd{a,b,c,d,e})
mdadm --quiet --create /dev/md5 --run --level=5 --raid-devices=5 --chunk=16 --metadata=1.2 --bitmap=none "${members[@]}" ||
	die "mdadm"
node md5
mdadm --wait /dev/md5
random 12 /dev/md5
sync /dev/md5
is "RAID5: it takes discards" yes "$([ "$(cat /sys/block/md5/queue/discard_max_bytes)" -gt 0 ] && echo yes)"
for disk in "${members[@]}"; do activate "$disk"; done
# What md writes of its own when an array falls silent
sleep 1
settle
before raid5 /dev/vda
# In each stripe some members' chunks are saved already and others' are not.
scatter /dev/md5 150 1
blkdiscard -o 4M -l 4M /dev/md5 || not_ok "RAID5: discard"
blocks /dev/md5 >"$work/trimmed"
scatter /dev/md5 40 2
blocks /dev/md5 | diff "$work/trimmed" - | grep "^>" >"$work/written"
is "RAID5: so many blocks are written after the trim" 40 "$(wc -l <"$work/written")"
echo check >/sys/block/md5/md/sync_action
mdadm --wait /dev/md5
is "RAID5: parity fits after a trim and writes" 0 "$(cat /sys/block/md5/md/mismatch_cnt)"
mdadm --quiet --stop /dev/md5
for missing in 0 1 2 3 4; do
	rest=("${members[@]}")
	unset "rest[missing]"
	# Read only, so that the superblocks of all stay equal.
	mdadm --quiet --assemble --run --readonly /dev/md5 "${rest[@]}" || not_ok "RAID5: assemble without ${members[missing]}"
	node md5
	blocks /dev/md5 | sed "s/^/> /" >"$work/read"
	is "RAID5: blocks written after the trim, wrong without ${members[missing]}" 0 \
		"$(grep -cvxFf "$work/read" "$work/written")"
	mdadm --quiet --stop /dev/md5
done
settle
back raid5 /dev/vda
for disk in "${members[@]}"; do deactivate "$disk"; done

# ---- RAID1: the legs are compared ----

for disk in /dev/vda /dev/vdb; do wipefs -aq "$disk"; done
mdadm --quiet --create /dev/md1 --run --level=1 --raid-devices=2 --metadata=1.2 --bitmap=none /dev/vda /dev/vdb || die "mdadm"
node md1
mdadm --wait /dev/md1
random 12 /dev/md1
sync /dev/md1
# One leg only: what the other one does with discards is its own.
activate /dev/vda
before raid1-leg /dev/vda
blkdiscard -o 4M -l 4M /dev/md1 || not_ok "RAID1: discard"
zeros "RAID1: discarded is zeros" /dev/md1 4 4
echo check >/sys/block/md1/md/sync_action
mdadm --wait /dev/md1
is "RAID1: the legs are equal after a trim" 0 "$(cat /sys/block/md1/md/mismatch_cnt)"
mdadm --quiet --stop /dev/md1
settle
back raid1-leg /dev/vda
deactivate /dev/vda

# ---- A thin pool passes discards down ----

data=/dev/vdc
dd if=/dev/zero of=/dev/vdd bs=1M count=4 oflag=direct status=none
sectors=$(blockdev --getsz $data)
pool="0 $sectors thin-pool /dev/vdd $data 128 0"
dmsetup create pool --table "$pool" || die "thin pool"
dmsetup message pool 0 "create_thin 0"
dmsetup create thin --table "0 $((12 << 11)) thin /dev/mapper/pool 0"
dmsetup mknodes
thin=/dev/mapper/thin
random 12 $thin
sync $thin
activate $data
before thin-data $data
blkdiscard -o 0 -l 8M $thin || not_ok "thin: discard"
zeros "thin: what is discarded above is below as well" $data 0 8
# New blocks of the pool are zeros but for what is written to them.
scatter $thin 5 3
bytes=$(dd if=$thin bs=1M skip=4 count=4 iflag=direct status=none | tr -d "\0" | wc -c)
is "thin: new blocks hold what was written and zeros" yes \
	"$([ "$bytes" -gt $((5 * 4000)) ] && [ "$bytes" -le $((5 * 4096)) ] && echo yes || echo "$bytes bytes")"
zeros "thin: what has no place any more is zeros" $thin 0 4
dmsetup remove thin
dmsetup remove pool
settle
back thin-data $data
deactivate $data

# ---- Nobody above: raw discards and write zeroes ----

device=/dev/vde
wipefs -aq $device
random 16 $device
sync $device
activate $device
before raw $device
blkdiscard -o 4M -l 4M $device || not_ok "raw: discard"
zeros "raw: discarded is zeros" $device 4 4
blkdiscard -z -o 12M -l 4M $device || not_ok "raw: write zeroes"
zeros "raw: zeroes are zeros" $device 12 4
settle
atleast "raw: all of it is saved" $((8 << 20)) "$(last saved_bytes $device)"
back raw $device
deactivate $device

# ---- A file system of its own: absorbed, which costs the store nothing ----

device=/dev/vdf
make_fs ext4 $device
mount $device /mnt || die "mount"
random 12 /mnt/old
truncate -s 8M /mnt/image
random 8 /mnt/image
umount /mnt
activate $device
before own $device
mount -o discard $device /mnt || die "mount"
rm /mnt/old
sync
fstrim /mnt || not_ok "own: fstrim"
atleast "own: a file system's discards are absorbed" $((10 << 20)) "$(status devices.0.absorbed_bytes $device)"
atmost "own: and not saved" $((3 << 20)) "$(status devices.0.saved_bytes $device)"

# Not a discard, though the file system is there.
absorbed=$(status devices.0.absorbed_bytes $device)
fallocate -l 2M /mnt/preallocated
fallocate -z -o 0 -l 1M /mnt/preallocated
random 1 /mnt/zeroed
sync
offset=$(filefrag -v -b4096 /mnt/zeroed | awk '$1 == "0:" { sub(/\.\..*/, "", $4); print $4 }')
blkdiscard -f -z -o $((offset * 4096)) -l 4096 $device || not_ok "own: write zeroes"
is "own: zeroes under a mounted file system are zeros" 0 \
	"$(dd if=$device bs=4k skip="$offset" count=1 iflag=direct status=none | tr -d '\0' | wc -c)"
is "own: and were not absorbed" "$absorbed" "$(status devices.0.absorbed_bytes $device)"

# A loop device on one of its files: discards there are holes in the file.
loop=$(losetup -f --show --direct-io=on /mnt/image) || loop=$(losetup -f --show /mnt/image)
blkdiscard -o 2M -l 2M "$loop" || not_ok "loop: discard"
zeros "loop: discarded is zeros" "$loop" 2 2
blkdiscard -z -o 5M -l 1M "$loop" || not_ok "loop: write zeroes"
zeros "loop: zeroes are zeros" "$loop" 5 1
losetup -d "$loop"
umount /mnt
back own $device
deactivate $device
[ "${1:-}" = none ] || {
	try bdsnap verify --all
	is "verify" 0 $code
}
complete
