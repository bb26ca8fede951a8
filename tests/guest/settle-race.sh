#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# /dev/late is vda, and comes while the look-up of another registered name, /dev/second, takes long: that is a link to
# a node on vdb, whose file system lies on a device mapper device that stands still or is slow. Then a medium that
# changes.

. "$(dirname "$0")/lib.sh"

# newest DEVICE FIELD...: of its newest session, in one line
newest() {
	local device=$1 fields
	shift
	fields=$(printf ', .%s' "$@")
	bdsnap list --json "$device" | jq -r ".sessions[-1] | [${fields#, }] | map(tostring) | join(\" \")"
}
# overwrite MIB SEEK: in the file on what is mounted
overwrite() { dd if=/dev/urandom of=/mnt/file bs=1M count="$1" seek="$2" conv=notrunc oflag=direct status=none || not_ok "$name: writes"; }

# ---- Bound while somebody looks ----

# begin NAME: nothing is bound, and nothing of the other's path in memory
begin() {
	name=$1
	rm -f /dev/late /dev/second
	bdsnap settle || not_ok "$name: settle"
	must "$name: nothing is bound" false "$(status devices.0.present /dev/late)"
	mount /dev/mapper/below /slow || not_ok "$name: mount of the other's path"
	copy /dev/vda "$name.0"
}
# appear: both come, and somebody looks
appear() {
	ln -s vda /dev/late
	ln -s /slow/a/b/node /dev/second
	bdsnap settle &
	settling=$!
}
# judge: is true what is said of the session that is over?
judge() {
	local kind state saved
	wait $settling || not_ok "$name: settle"
	umount /slow
	copy /dev/vda "$name.1"
	read -r kind state saved <<<"$(newest /dev/late kind state saved_bytes)"
	is "$name: its session" "mount closed" "$kind $state"
	[[ $saved = *[0-9] ]] || saved=0
	atleast "$name: all that was overwritten is saved" $((8 << 20)) "$saved"
	try bdsnap-restore /dev/late latest --yes
	is "$name: restore" 0 $code
	copy /dev/vda "$name.2"
}

mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/vda
mount /dev/vda /mnt
random 10 /mnt/file
umount /mnt
sectors=$(blockdev --getsz /dev/vdb)
dmsetup create below --table "0 $sectors linear /dev/vdb 0" || die "dmsetup"
dmsetup mknodes
mkfs.ext4 -q /dev/mapper/below
mkdir /slow
mount /dev/mapper/below /slow
mkdir -p /slow/a/b
IFS=: read -r major minor </sys/block/vdb/dev
mknod /slow/a/b/node b "$major" "$minor"
umount /slow

load
activate /dev/late
activate /dev/second

# The other look-up stands still until the session is over. So would whoever asks for that name, as the status does.
begin held
dmsetup suspend --noflush --nolockfs below || not_ok "suspend"
appear
sleep 1
mount /dev/vda /mnt || not_ok "$name: mount"
overwrite 8 0
kill -0 $settling || not_ok "$name: the other name's look-up did not last"
umount /mnt || not_ok "$name: umount"
dmsetup resume below
judge

# Until it has begun
begin during
dmsetup suspend --noflush --nolockfs below || not_ok "suspend"
appear
sleep 1
mount /dev/vda /mnt || not_ok "$name: mount"
overwrite 7 0
dmsetup resume below
wait $settling
overwrite 1 8
umount /mnt || not_ok "$name: umount"
judge

# It is slow: a second for each of some reads.
begin at-once
switch below "0 $sectors delay /dev/vdb 0 1000 /dev/vdb 0 0"
appear
mount /dev/vda /mnt || not_ok "$name: mount"
overwrite 8 0
umount /mnt || not_ok "$name: umount"
switch below "0 $sectors linear /dev/vdb 0"
judge
rm /dev/second

# ---- A medium that changes below a mounted file system ----

name=medium
modprobe sd_mod; modprobe scsi_debug removable=1 dev_size_mb=24 delay=0 || die "scsi_debug"
for ((i = 0; i < 100; i++)); do
	[ ! -b /dev/sda ] || break
	sleep 0.1
done
# No I/O while nobody asks for any: what comes first has to be the look at the medium.
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/sda
mount /dev/sda /mnt
random 10 /mnt/file
umount /mnt
sync
activate /dev/sda
mount /dev/sda /mnt || not_ok "$name: mount"
dd if=/dev/urandom of=/mnt/file bs=512k count=1 conv=notrunc oflag=direct status=none
sync -f /mnt
# From now on somebody looks, as udev has it done for what is removable, and the drive says that something is new.
seq=$(cat /sys/block/sda/diskseq)
echo 100 >/sys/block/sda/events_poll_msecs
sleep 0.5
must "$name: no change yet" "$seq" "$(cat /sys/block/sda/diskseq)"
echo 1 >/sys/bus/pseudo/drivers/scsi_debug/lun_format
for ((i = 0; i < 100; i++)); do
	[ "$(cat /sys/block/sda/diskseq)" = "$seq" ] || break
	sleep 0.1
done
differ "$name: its number has changed" "$seq" "$(cat /sys/block/sda/diskseq)"
echo 0 >/sys/block/sda/events_poll_msecs
overwrite 8 1
sleep 1
is "$name: the session is broken while it runs" "broken 116" "$(status devices.0.state /dev/sda) $(status devices.0.errno /dev/sda)"
umount /mnt || not_ok "$name: umount"
is "$name: and in the store" "mount broken 116" "$(newest /dev/sda kind state errno)"
try bdsnap status --check
differ "$name: --check tells" 0 $code
try bdsnap-restore /dev/sda latest --yes
is "$name: restore is refused" 5 $code

mount /dev/sda /mnt || not_ok "$name: mount again"
overwrite 1 1
umount /mnt
is "$name: the next session is of what is there now" closed "$(newest /dev/sda state)"
differ "$name: and not linked to the one before as if nothing had been" none "$(newest /dev/sda gap_before)"
complete
