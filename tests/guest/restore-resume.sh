#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Restores of /dev/vda, cut in the middle by signals. Copies for the host to compare: NAME.a and NAME.b
# must be equal.

. "$(dirname "$0")/lib.sh"

# cut SIGNAL ARG...: runs a restore, sends it the signal when it has begun to write, sets `code`
cut() {
	local signal=$1 line child
	shift
	mkfifo "$work/lines"
	bdsnap-restore "$@" --yes --json-lines >"$work/lines" &
	child=$!
	while read -r line; do
		case $line in *'"phase":"restore"'*) kill -"$signal" $child ;; esac
	done <"$work/lines"
	code=0
	wait $child || code=$?
	rm "$work/lines"
	echo "+ bdsnap-restore $* and a signal $signal -> $code"
}

device=/dev/vda
load
make_fs ext4 $device
sync
copy $device past
activate $device
mount $device /mnt || not_ok "mount"
random 120 /mnt/file
umount /mnt
session=$(column name $device)
copy $device now

cut INT $device latest
is "Ctrl-C ends it with 130" 130 $code
try bdsnap-restore $device --resume --dry-run
is "what would be resumed" 0 $code
try bdsnap-restore $device --resume --yes
is "resumed without a gap: the module watched" 0 $code
copy $device resumed.a
cp --sparse=always /host/past /host/resumed.b
try bdsnap-restore $device --resume --yes
is "nothing more to resume" 3 $code
try bdsnap-restore $device --undo --yes
is "undone, all of it" 0 $code
copy $device undone.a
cp --sparse=always /host/now /host/undone.b

cut INT $device "$session"
is "Ctrl-C again" 130 $code
try bdsnap-restore $device --undo --yes
is "undone in the middle, without a gap" 0 $code
copy $device undone-in-the-middle.a
cp --sparse=always /host/now /host/undone-in-the-middle.b

cut KILL $device "$session"
is "killed" 137 $code
try bdsnap-restore $device --resume --yes
is "what was killed was not watched to its end: refused" 5 $code
try bdsnap-restore $device --resume --yes --accept-gap
is "resumed if that is accepted" 0 $code
copy $device killed.a
cp --sparse=always /host/past /host/killed.b

cut KILL $device --undo --accept-gap
is "an undo is killed" 137 $code
printf x | dd of=$device bs=1 seek=$((60 << 20)) conv=notrunc,fsync status=none
bdsnap settle --raw
try bdsnap-restore $device --resume --yes --accept-gap
is "somebody else has written since: refused" 5 $code
atleast "a line in the history for each that came to an end" 5 "$(grep -c . /snapshot/.bdsnap-history)"
complete
