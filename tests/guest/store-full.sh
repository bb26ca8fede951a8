#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A session for each of many sizes of what is free in the store, from nothing to more than it needs, so that it
# is full at each of its steps: making the session, the first pre-images, later ones, its end. Then with space
# set aside, as is the default. /dev/vda: origin, /dev/vdb: store.

. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/store.sh"

mkfs.ext4 -q -F -m 0 -b 1024 /dev/vdb
mount /dev/vdb /snapshot
bdsnap init
mkfs.ext4 -q -F "$device"
mount "$device" /mnt
random 8 /mnt/file
umount /mnt
log=$work/events
load min_free_mib=0
activate "$device"
events "$log"

# leave KIB: so much is free in the store
leave() {
	local free
	sync -f /snapshot
	free=$(stat -f -c '%a * %S / 1024' /snapshot)
	free=$((free))
	fallocate -l $(((free - $1 - 8) * 1024)) /snapshot/filler || not_ok "filling the store"
	# The rest piece by piece: the file itself needs blocks, too.
	while [ $(($(stat -f -c '%a * %S / 1024' /snapshot))) -gt "$1" ]; do
		dd if=/dev/zero of=/snapshot/filler bs=1024 count=1 oflag=append conv=notrunc status=none || break
	done
}

# One whole session first, so that there is a chain.
name=first
works first
outcomes=''
for kib in 0 2 5 9 14 24 40 2200 4000; do
	name="$kib KiB"
	before=$(list 'sessions.#' "$device")
	leave $kib
	begin
	overwrite /mnt/file 2 || not_ok "$name: the writes go on"
	[ $took -lt 8000 ] || not_ok "$name: the writes took $took ms"
	state=$(status devices.0.state)
	if [ "$state" = broken ]; then told "$name" 28; fi
	umount /mnt || not_ok "$name: umount"
	# Its end may be what there is no space for.
	if [ "$(status devices.0.state)" = broken ]; then state=broken; fi
	bdsnap list "$device"
	must "$name: no folder that cannot say what it is" "$(find /snapshot -maxdepth 1 -name "vda_*" | wc -l)" "$(list "sessions.#" "$device")"
	if [ "$state" = broken ]; then
		must "$name: none that looks cut or whole" "0 0" "$(sessions_of interrupted) $(sessions_of recording)"
		must "$name: none that looks whole" "$before" "$(($(sessions_of closed) + $(sessions_of undo)))"
		refused "$name"
	else
		must "$name: closed" "mount closed" "$(last kind "$device") $(last state "$device")"
		rm /snapshot/filler
		try bdsnap-restore "$device" latest --yes --no-undo
		must "$name: restore" 0 $code
		must "$name: byte for byte" "$was" "$(sum_of "$device")"
	fi
	outcomes+=" $state"
	rm -rf /snapshot/filler /snapshot/vda_*
	dmesg -c >/dev/null
done
echo "outcomes:$outcomes"
is "it was full in some and not in others" 2 "$(echo "$outcomes" | tr ' ' '\n' | grep . | sort -u | wc -l)"
name=after
works after
ok "each session was told of as what it was"

# ---- Space set aside: a warning comes first, and that space is left ----

rmmod bdsnap || not_ok rmmod
rm -rf /snapshot/vda_*
load min_free_mib=4
activate "$device"
leave 10240
name=aside
begin
for mib in $(seq 0 7); do overwrite /mnt/file 1 "$mib" || not_ok "$name: the writes go on"; done
told "$name" 28
is "a warning comes before" "low-space 0,broken 28" "$(events_of "$log" "$lines" | paste -sd ,)"
umount /mnt
atleast "what was set aside is left (KiB)" $((4096 - 64)) $(($(stat -f -c '%a * %S / 1024' /snapshot)))
atleast "but no more (KiB saved)" 4096 $(($(list sessions.0.saved_bytes "$device") / 1024))
refused "$name"
rm -rf /snapshot/filler /snapshot/vda_*
copy "$device" last.a
works "$name"
no_events
bdsnap list
complete
