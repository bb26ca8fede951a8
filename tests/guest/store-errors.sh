#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# See tests/cases/store-errors.sh. /dev/vda: origin, with dm above it for a while, /dev/vdb: store, below dm.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/store.sh"

limit=3000 # hold_timeout_ms
sectors=$(blockdev --getsz /dev/vdb)
whole="0 $sectors linear /dev/vdb 0"
# new_store MKFS-OPTION...
new_store() {
	mkfs.ext4 -q -F -m 0 "$@" /dev/mapper/store
	mount /dev/mapper/store /snapshot || die "the store"
	bdsnap init || not_ok "bdsnap init"
}
# mended: what is in it was changed while it was not mounted
mended() {
	umount /snapshot || not_ok "$name: umount of the store"
	e2fsck -fy /dev/mapper/store >"$work/fsck"
	[ $? -le 2 ] || { cat "$work/fsck"; not_ok "$name: the store can be repaired"; }
	mount /dev/mapper/store /snapshot || not_ok "$name: mount of the store"
}
# in_time NAME: the last `overwrite` was not held longer than it may be. Writes are held one after the other,
# and the machine may be slow.
in_time() { [ $took -le $((2 * limit + 3000)) ] || not_ok "$1: the writes took $took ms"; }

dmsetup create store --table "$whole"
dmsetup mknodes
new_store
mkfs.ext4 -q -F "$device"
mount "$device" /mnt
random 12 /mnt/file
umount /mnt
log=$work/events
load hold_timeout_ms=$limit min_free_mib=0
activate "$device"
events "$log"
name=first
works first

# ---- Frozen ----

for when in before during; do
	name="frozen $when"
	[ $when = during ] || fsfreeze -f /snapshot
	if [ $when = before ]; then
		was=''
		lines=$(($(wc -l <"$log") + 1)) since=$(date +%s)
		mount "$device" /mnt || not_ok "$name: mount"
	else
		begin
		overwrite /mnt/file 1
		fsfreeze -f /snapshot
	fi
	overwrite /mnt/file 2 4 || not_ok "$name: the writes go on"
	in_time "$name"
	told "$name" 110
	began=$(milliseconds)
	umount /mnt || not_ok "$name: umount"
	took=$(($(milliseconds) - began))
	[ $took -le $((4 * limit)) ] || not_ok "$name: the umount took $took ms"
	fsfreeze -u /snapshot
	for _ in $(seq 50); do [ "$(status module.sessions)" = 0 ] && [ "$(status module.live.sessions)" = 0 ] && break; sleep 0.1; done
	is "$name: the store says so afterwards" "broken 110" "$(last state "$device") $(last errno "$device")"
	refused "$name"
	works "$name"
done

# ---- Read-only ----

name="read-only"
begin
overwrite /mnt/file 1
try mount -o remount,ro /snapshot
differ "$name: not while a session writes to it" 0 $code
umount /mnt || not_ok "$name: umount"
try bdsnap-restore "$device" latest --yes
must "$name: the session before, byte for byte" "$was" "$(sum_of "$device")"
mount -o remount,ro /snapshot || not_ok "$name: remount"
begin
overwrite /mnt/file 2 || not_ok "$name: the writes go on"
in_time "$name"
told "$name" 30
umount /mnt || not_ok "$name: umount"
mount -o remount,rw /snapshot
refused "$name"
is "$name: no session that says so, but a gap" written "$(
	works "$name" >&2
	column gap_before "$device" | awk '{ print $(NF - 1) }'
)"
name="an error found in the store's file system"
begin
overwrite /mnt/file 1
mount -o remount,errors=remount-ro /snapshot || not_ok "$name: remount"
echo 1 >/sys/fs/ext4/dm-0/trigger_fs_error
overwrite /mnt/file 2 4 || not_ok "$name: the writes go on"
in_time "$name"
errno=$(status devices.0.errno)
told "$name" "$errno"
umount /mnt || not_ok "$name: umount"
mended
refused "$name"
works "$name"
ok "$name: broken, errno $errno"

# ---- Folders removed and replaced ----

for what in removed link moved; do
	name="the session's folder is $what"
	begin
	overwrite /mnt/file 1
	folder=/snapshot/$(status devices.0.session)
	[ -d "$folder" ] || not_ok "$name: no $folder"
	case $what in
	removed) rm -r "$folder" ;;
	link)
		rm -r "$folder"
		mkdir "$work/elsewhere"
		ln -s "$work/elsewhere" "$folder"
		;;
	moved) mv "$folder" /snapshot/moved ;;
	esac
	overwrite /mnt/file 1 4 || not_ok "$name: the writes go on"
	in_time "$name"
	umount /mnt || not_ok "$name: umount"
	bdsnap list "$device"
	case $what in
	removed | link)
		is "$name: the status says so" broken "$(status devices.0.state)"
		[ $what = removed ] || is "$name: nothing was written where it leads" "" "$(ls -A "$work/elsewhere")"
		refused "$name"
		rm -f "$folder"
		;;
	moved)
		is "$name: it is whole where it is now" "moved closed" "$(last name "$device") $(last state "$device")"
		try bdsnap-restore "$device" latest --yes
		is "$name: restore" 0 $code
		is "$name: byte for byte" "$was" "$(sum_of "$device")"
		mv /snapshot/moved "$folder"
		;;
	esac
	works "$name"
done
name="the chains' folder is a link"
mv /snapshot/.bdsnap-chain "$work/chain"
ln -s "$work/chain" /snapshot/.bdsnap-chain
before=$(cat "$work"/chain/* | sha256sum)
begin
overwrite /mnt/file 1 || not_ok "$name: the writes go on"
is "$name: broken" broken "$(status devices.0.state)"
umount /mnt
is "$name: nothing was written where it leads" "$before" "$(cat "$work"/chain/* | sha256sum)"
rm /snapshot/.bdsnap-chain
mv "$work/chain" /snapshot/.bdsnap-chain
refused "$name"
works "$name"

# ---- Errors at some places, of all or of a part of the store; with a journal and without ----

for journal in has_journal ^has_journal; do
	umount /snapshot || not_ok "umount of the store"
	new_store -O $journal -E lazy_itable_init=0
	outcomes=''
	works "$journal"
	percents="10 30 50 70 90"
	[ $journal = has_journal ] || percents="4 8 12 16"
	for percent in $percents; do
		name="$journal, errors from $percent % on"
		at=$((sectors * percent / 100 / 8 * 8))
		begin
		overwrite /mnt/file 1
		switch store "0 $at linear /dev/vdb 0
$at $((sectors - at)) error"
		overwrite /mnt/file 2 4 || not_ok "$name: the writes go on"
		in_time "$name"
		state=$(status devices.0.state)
		if [ "$state" = broken ]; then told "$name" "$(status devices.0.errno)"; fi
		umount /mnt || not_ok "$name: umount"
		state=$(status devices.0.state) errno=$(status devices.0.errno)
		switch store "$whole"
		mended
		if [ "$state" = broken ]; then
			refused "$name"
		else
			# What was read back from the disk is what counts
			try bdsnap-restore "$device" latest --yes
			must "$name: restore" 0 $code
			must "$name: byte for byte" "$was" "$(sum_of "$device")"
		fi
		dmesg -c >/dev/null
		outcomes+=" $state/$errno"
		works "$name"
	done
	echo "outcomes:$outcomes"
	atleast "$journal: sessions that errors broke" 2 "$(echo "$outcomes" | tr ' ' '\n' | grep -c broken)"
done

# ---- An origin that hangs for a while ----

name="the origin hangs"
deactivate "$device"
dmsetup create origin --table "0 $(blockdev --getsz /dev/vda) linear /dev/vda 0"
dmsetup mknodes
device=/dev/mapper/origin
activate $device
begin
overwrite /mnt/file 1
dmsetup suspend --nolockfs origin
(
	sleep 5
	dmsetup resume origin
) &
overwrite /mnt/file 2 4 || not_ok "$name: the writes go on"
wait $!
in_time "$name"
told "$name" 110
umount /mnt || not_ok "$name: umount"
is "$name: the store says so" "broken 110" "$(last state $device) $(last errno $device)"
refused "$name"
copy $device last.a
works "$name"
no_events
complete
