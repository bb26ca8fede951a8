#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# cut-restore.sh WHAT CUT...: after the power came back. /dev/vda, vdb, ... are the disks that the CUTs have left
# of what cut-record.sh did; each in its turn is the one that is there. What was found and done goes to
# /host/CUT.KEY for the host to judge, together with the disk; nothing is judged here.

. "$(dirname "$0")/lib.sh"
what=$1
shift
read -ra names </host/names
letters=abcdefghijklmnopqrst n=0

# say KEY VALUE
say() { echo "$2" >"/host/$cut.$1"; }
# status_of KEY COMMAND...: its status
status_of() {
	local key=$1
	shift
	try "$@"
	say "$key" $code
}
# look: reads which sessions there are; state NAME: of one of them, nothing if it is not there
look() { bdsnap list --json /dev/origin | jq -r '.sessions[] | .name + " " + .state' >"$work/sessions"; }
state() { sed -n "s/^$1 //p" "$work/sessions"; }
restore() { bdsnap-restore /dev/origin "$@" --yes; }
# mounted_again: what a machine that protects the device does when it comes up again. The origin's
# file system has to come through the cut as well.
mounted_again() {
	activate /dev/origin || not_ok "$cut: activate"
	if mount "$device" /mnt; then
		say mount 0
		echo again >>/mnt/again
		umount /mnt
	else
		say mount 1
	fi
	deactivate /dev/origin || not_ok "$cut: deactivate"
}
session() {
	local found
	look
	found=$(state "${names[1]}")
	say state "$found"
	status_of verify bdsnap verify --all
	[ -n "$found" ] || return
	if [ $((n % 2)) = 0 ]; then mounted_again; fi
	if [ $n -le 2 ]; then status_of refused restore "${names[1]}"; fi
	status_of restore restore "${names[1]}" --accept-gap
	if [ "$(</host/"$cut.restore")" = 5 ]; then status_of loss restore "${names[1]}" --accept-gap --accept-loss; fi
}
restoring() {
	look
	say state "$(state "${names[0]}")"
	status_of verify bdsnap verify --all
	case $((n % 3)) in
	0)
		say how resume
		status_of restore restore --resume --accept-gap
		;;
	1)
		say how undo
		status_of restore restore --undo --accept-gap
		;;
	2)
		say how anew
		status_of restore restore "${names[0]}" --accept-gap
		;;
	esac
}
pruning() {
	local i
	look
	status_of verify bdsnap verify --all
	for i in "${!names[@]}"; do
		say "state$i" "$(state "${names[i]}")"
		[ -z "$(state "${names[i]}")" ] ||
			status_of "image$i" bdsnap-restore /dev/origin "${names[i]}" --accept-gap --to "/host/$cut.$i.image"
	done
	status_of again bdsnap-prune --keep-last 1 --min-age 0 --apply
	look
	say remain "$(cut -d " " -f 1 "$work/sessions" | paste -sd " ")"
	status_of verify-again bdsnap verify --all
	status_of restore restore "${names[0]}" --accept-gap
}

for cut; do
	disk=/dev/vd${letters:n++:1}
	device=${disk}1
	ln -sfn "${device#/dev/}" /dev/origin
	btrfs device scan --forget >/dev/null
	echo "== cut $cut"
	if mount "${disk}2" /snapshot; then
		say store 0
		[ -e /dev/bdsnap ] || load
		case $what in
		strict | async) session ;;
		restore) restoring ;;
		prune) pruning ;;
		esac
		umount /snapshot || not_ok "$cut: the store can't be unmounted"
	else
		say store 1
	fi
done
complete
