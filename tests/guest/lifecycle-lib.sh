# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034,SC2154
#
# Sourced after lib.sh by the scripts lifecycle-*.sh: who redirects which function, and short sessions.

tracing=/sys/kernel/tracing
hooked="submit_bio_noacct bdev_file_open_by_dev bdev_fput"
# ours: how many of the three functions are redirected
ours() {
	local n=0 name
	for name in $hooked; do grep -qE "^$name \(.*\bI\b" $tracing/enabled_functions && n=$((n + 1)); done
	echo $n
}
# small NAME DEVICE: a session on what is there, registered or not, and back
small() {
	copy "$2" "$1.0"
	mount "$2" /mnt || not_ok "$1: mount"
	random 1 "/mnt/$1"
	umount /mnt || not_ok "$1: umount"
	copy "$2" "$1.1"
	must "$1: the session" "mount closed" "$(last kind "$2") $(last state "$2")"
	try bdsnap-restore "$2" latest --yes
	must "$1: restore" 0 $code
	copy "$2" "$1.2"
}
