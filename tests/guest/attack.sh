#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Random calls of the control interface while /dev/vda has a session, and what somebody who can write to
# the store could plant there so that module or tools write elsewhere. The host judges the copies.

. "$(dirname "$0")/lib.sh"
load

# ---- Random calls ----

make_fs ext4 /dev/vda
sync
activate /dev/vda
copy /dev/vda under-random-calls.0
mount /dev/vda /mnt || die "mount"
(
	i=0
	while [ ! -e "$work/enough" ]; do
		dd if=/dev/urandom of="/mnt/$((i % 20))" bs=64k count=4 conv=fsync status=none || not_ok "a write"
		i=$((i + 1))
	done
	echo $i >"$work/written"
) &
for seed in 1 2; do
	try bdsnap-testtool fuzz $seed 10000 "$(cat "$password")"
	is "random calls, seed $seed: all came back" 0 $code
	# What was asked for, and what was not
	atleast "several answers" 6 "$(wc -l <<<"$out")"
done
: >"$work/enough"
wait
atleast "writes went on meanwhile" 5 "$(cat "$work/written")"
umount /mnt || not_ok "umount"
copy /dev/vda under-random-calls.1
is "the session is whole" "mount closed" "$(last kind /dev/vda) $(last state /dev/vda)"
try bdsnap-restore /dev/vda latest --yes --accept-gap
is "its restore" 0 $code
copy /dev/vda under-random-calls.2
try bdsnap status
is "the control interface answers as before" 0 $code
for disk in vda vdb vdc; do deactivate /dev/$disk; done

# ---- Links in the store ----

victim=/victim
mkdir $victim
echo precious >$victim/file
state() { find $victim -type f -exec cat {} + && find $victim | sort && stat -c '%a %U %Y' $victim/file; }
unharmed() { is "$1: what the links lead to is as before" "$victim_state" "$(state)"; }
victim_state=$(state)

activate /dev/vda
mount /dev/vda /mnt
random 1 /mnt/a
umount /mnt
key=$(find /snapshot/.bdsnap-chain -type f -printf '%T@ %f\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
# The names that the next session could take, its link to the one before, and where things are built
for ((i = 0; i < 40; i++)); do
	ln -s $victim "/snapshot/vda_$(date -u -d "+$i seconds" +%Y%m%dT%H%M%SZ)"
done
copy /dev/vda among-links.0
ln -sf $victim/file "/snapshot/.bdsnap-chain/$key"
for name in "$key.new" "$key.tmp" ".$key"; do ln -s $victim/new "/snapshot/.bdsnap-chain/$name"; done
mount /dev/vda /mnt || not_ok "mount"
random 2 /mnt/a
umount /mnt
copy /dev/vda among-links.1
unharmed "a session"
find /snapshot -maxdepth 1 -type l -delete
find /snapshot/.bdsnap-chain -type l -delete
is "and it was recorded all the same" closed "$(last state /dev/vda)"
session=$(last name /dev/vda)
try bdsnap-restore /dev/vda "$session" --yes --accept-gap
is "among links: restore" 0 $code
copy /dev/vda among-links.2

# planted NAME TARGET: a link in the session's or the store's folder; then all tools
planted() {
	local link=/snapshot/$1
	[ ! -e "$link" ] || mv "$link" "$work/kept"
	if [ "$2" = fifo ]; then mkfifo "$link"; else ln -s "$2" "$link"; fi
	for command in "bdsnap list" "bdsnap verify --all" "bdsnap inspect $session" "bdsnap hold $session kept" \
		"bdsnap release $session kept" "bdsnap-restore /dev/vda $session --yes --accept-gap" \
		"bdsnap-prune --keep-last 1 --allow-empty --apply" "bdsnap status" \
		"bdsnap-restore /dev/vda $session --to $work/image --yes --accept-gap"; do
		# shellcheck disable=SC2086
		try timeout 60 $command
		[ $code -lt 100 ] || not_ok "$1: $command ends with $code"
	done
	rm -f "$work/image" "$link"
	[ ! -e "$work/kept" ] || mv "$work/kept" "$link"
	unharmed "$1 -> ${2##*/}"
}
cp -a "/snapshot/$session" "$work/session"
whole() {
	rm -rf "/snapshot/$session"
	cp -a "$work/session" "/snapshot/$session"
}
for name in blocks.map blocks.dat meta.json holds.json verified.json; do
	# What is only read, and what is written as well
	case $name in blocks.*) targets="$victim/file fifo" ;; *) targets="$victim/file $victim/missing" ;; esac
	for target in $targets; do
		whole
		planted "$session/$name" $target
	done
done
for name in .bdsnap-history .bdsnap-trash .bdsnap-restore; do
	whole
	planted $name $victim/missing
	planted $name $victim
done
whole
planted "vda_20260101T000000Z" $victim
complete
