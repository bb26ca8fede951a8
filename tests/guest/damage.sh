#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Damages a session of /dev/vda in many ways. For each: what do `verify` and `restore` say? What
# `restore --to` makes goes to /host/to.N, for the host to compare; only the device's own restores are
# expected to fail always.

. "$(dirname "$0")/lib.sh"
load
make_fs ext4 /dev/vda
sync
copy /dev/vda first
activate /dev/vda
mount /dev/vda /mnt
load_on /mnt 1 1
umount /mnt
copy /dev/vda second
mount /dev/vda /mnt
load_on /mnt 2 1
umount /mnt
copy /dev/vda third
read -r one two <<<"$(column name)"
must "two sessions" "closed closed" "$(column state)"
cp -a /snapshot "$work/whole"
map=$(stat -c %s "/snapshot/$two/blocks.map") dat=$(stat -c %s "/snapshot/$two/blocks.dat")
n=0

whole() {
	rm -rf "/snapshot/$two"
	cp -a "$work/whole/$two" /snapshot/
}
flip() { bdsnap-testtool flip "/snapshot/$two/$1" "$2"; }
cut() { truncate -s "$2" "/snapshot/$two/$1"; }
# judge NAME VERIFY RESTORE COMMAND...: the statuses expected of `verify` and of `restore` after the
# damage; several, separated by |
judge() {
	local name=$1 verify=$2 restore=$3
	shift 3
	"$@" || not_ok "$name: cannot do the damage"
	try bdsnap verify --all
	[[ "|$verify|" = *"|$code|"* ]] || not_ok "$name: verify gives $code, expected $verify"
	try bdsnap-restore /dev/vda "$two" --to /host/to.$n --yes
	[[ "|$restore|" = *"|$code|"* ]] || not_ok "$name: restore --to gives $code, expected $restore"
	[ $code = 0 ] || [ ! -e /host/to.$n ] || not_ok "$name: a refused restore has left a file"
	# The session before it stands on the damaged one. Every third time, for it is slow.
	if [ $((n % 3)) = 0 ]; then
		try bdsnap-restore /dev/vda "$one" --to /host/one.$n --yes
		[[ "|$restore|3|4|5|" = *"|$code|"* ]] || not_ok "$name: restore of the session before gives $code"
		[ $code = 0 ] || [ ! -e /host/one.$n ] || not_ok "$name: a refused restore has left a file"
	fi
	whole
	: $((n++))
	ok "damage: $name"
}
refuse='3|4|5'

judge "none" 0 0 true
judge "flip in the data" 4 4 flip blocks.dat $((dat / 2))
judge "flip in the data's first byte" 4 4 flip blocks.dat 0
judge "flip in the data's last byte" 4 4 flip blocks.dat $((dat - 1))
judge "flip in the magic" 4 "$refuse" flip blocks.map 3
judge "flip in the header" 4 "$refuse" flip blocks.map 40
judge "flip in the header's end" 4 "$refuse" flip blocks.map 8191
judge "flip in a status slot" "0|4" "0|$refuse" flip blocks.map 8200
judge "flip in the other status slot" "0|4" "0|$refuse" flip blocks.map 12304
both() { flip blocks.map 8200 && flip blocks.map 12304; }
judge "flip in both status slots" 4 "$refuse" both
# The session's start, and the first run
for at in 0 58 $((64 + 4)) $((64 + 24)) $((64 + 63)); do
	judge "flip in the first records, byte $at" 4 4 flip blocks.map $((16384 + at))
done
middle=$((16384 + (map - 16384) / 128 * 64))
judge "flip in a record in the middle" 4 4 flip blocks.map $((middle + 5))
# A map that has lost a record, or a block of them
without() {
	head -c $((middle)) "$work/whole/$two/blocks.map" >"/snapshot/$two/blocks.map" &&
		tail -c +$((middle + $1 + 1)) "$work/whole/$two/blocks.map" >>"/snapshot/$two/blocks.map"
}
judge "a record in the middle is gone" 4 "$refuse" without 64
judge "a block in the middle is gone" 4 "$refuse" without 4096
judge "flip in the last record" 4 4 flip blocks.map $((map - 20))
for size in 0 100 8191 8192 12288 16384 16400 16448 $((16384 + 192)) $((map - 64)) $((map - 1)); do
	judge "blocks.map cut to $size of $map" 4 "$refuse" cut blocks.map $size
done
for size in 0 1 4096 $((dat / 2)) $((dat - 4096)) $((dat - 1)); do
	judge "blocks.dat cut to $size of $dat" 4 4 cut blocks.dat $size
done
judge "blocks.dat missing" 4 "$refuse" rm "/snapshot/$two/blocks.dat"
judge "blocks.map missing" 4 "$refuse" rm "/snapshot/$two/blocks.map"
judge "blocks.map is a link" 4 "$refuse" ln -sfn /dev/zero "/snapshot/$two/blocks.map"
judge "meta.json missing" 0 0 rm "/snapshot/$two/meta.json"
garbage() { head -c 5000 /dev/urandom >"/snapshot/$two/meta.json"; }
judge "meta.json is garbage" "0|4" 0 garbage
judge "the session is gone" 0 3 rm -r "/snapshot/$two"
longer() { head -c 4096 /dev/urandom >>"/snapshot/$two/blocks.map"; }
judge "garbage after the last record" "0|4" "0|$refuse" longer
swapped() { cp "/snapshot/$one/blocks.dat" "/snapshot/$two/blocks.dat"; }
judge "another session's data" 4 4 swapped
echo $n >/host/n

# The device itself, which the host compares with `third`
for what in blocks.dat:$((dat / 2)) blocks.map:$((16448 + 17)) blocks.dat:0; do
	flip "${what%:*}" "${what#*:}"
	for session in "$one" "$two"; do
		try bdsnap-restore /dev/vda "$session" --yes
		is "a flipped bit in ${what%:*}: the restore of $([ "$session" = "$one" ] && echo the session before || echo it) is refused" 4 $code
		try bdsnap-restore /dev/vda "$session" --yes --accept-gap --accept-loss --no-undo --json
		is "the same with all that can be accepted, in JSON" 4 $code
	done
	whole
done
complete
