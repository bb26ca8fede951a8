#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: quick
# timeout: 60
#
# A purge of the package, as dpkg calls its script: does it leave alone what is mounted where it tidies up?

# shellcheck disable=SC2016
. "$(dirname "$0")/../lib.sh"

# purge NAME PREPARE: in a mount namespace with /etc, /run and /var/lib/systemd of its own, in which PREPARE adds mounts;
# sets left, what is below the package's folders then, and said. $dir/store and $share are those outside.
purge() {
	status=0
	rm -rf "$dir/store"
	mkdir "$dir/store"
	cp "$dir/session" "$dir/store/x"
	left=$(unshare --mount --propagation=private -- bash -euc '
		dir=$1 script=$2
		cp -a /etc/alternatives "$dir/alternatives"
		for place in etc run var/lib/systemd; do mkdir -p "/$place"; mount -t tmpfs tmpfs "/$place"; done
		mv "$dir/alternatives" /etc/
		mkdir -p /etc/bdsnap/conf.d /run/bdsnap/.hidden /var/lib/systemd/timers
		echo secret >/etc/bdsnap/secret
		echo id >/run/bdsnap/loaded
		echo >/run/bdsnap/.hidden/x
		echo >/var/lib/systemd/timers/stamp-bdsnap-prune.timer
		eval "$3"
		sh "$script" purge 2>"$dir/said" || exit
		cd /
		find etc/bdsnap run/bdsnap var/lib/systemd/timers/* -type f 2>/dev/null | sort | while read -r file; do
			cmp -s "/$file" "$dir/session" || printf "changed "
			echo "$file"
		done | paste -sd " "
		! [ -d etc/bdsnap ] || ! [ -z "$(ls -A etc/bdsnap)" ] || echo etc/bdsnap
		! [ -d run/bdsnap ] || ! [ -z "$(ls -A run/bdsnap)" ] || echo run/bdsnap
		cmp "$dir/store/x" "$dir/session" >&2' - "$dir" "$top/debian/bdsnap.postrm" "$2") || status=$?
	is "$1: the purge goes through" 0 $status
	cmp "$dir/store/x" "$dir/session" || not_ok "$1: what is mounted"
}
said() { if grep -q "$2" "$dir/said"; then ok "$1"; else not_ok "$1: no '$2' in: $(<"$dir/said")"; fi; }

head -c 100000 /dev/urandom >"$dir/session"

purge "nothing mounted" :
is "nothing mounted: nothing is left" '' "$left"

purge "a file system below" 'mkdir -p /run/bdsnap/a/store; mount -t tmpfs tmpfs /run/bdsnap/a/store; cp "$dir/session" /run/bdsnap/a/store/x; cp -r /run/bdsnap/loaded /run/bdsnap/a/'
is "a file system below: it is left, and nothing else" run/bdsnap/a/store/x "$left"
said "a file system below: that is said" '/run/bdsnap/a/store stays'

purge "a bind mount" 'mkdir -p /run/bdsnap/store; mount --bind "$dir/store" /run/bdsnap/store'
is "a bind mount: it is left, and nothing else" run/bdsnap/store/x "$left"

purge "of the same file system" 'mkdir -p /run/elsewhere /run/bdsnap/store; cp "$dir/session" /run/elsewhere/x; mount --bind /run/elsewhere /run/bdsnap/store'
is "of the same file system: it is left, and nothing else" run/bdsnap/store/x "$left"

purge "a file that is mounted" 'echo >/run/bdsnap/x; mount --bind "$dir/session" /run/bdsnap/x'
is "a file that is mounted: it is left, and nothing else" run/bdsnap/x "$left"

purge "the folder itself" 'mount --bind "$dir/store" /run/bdsnap'
is "the folder itself: it is left, and nothing else" run/bdsnap/x "$left"
said "the folder itself: that is said" '/run/bdsnap stays'

purge "below the configuration" 'mount --bind "$dir/store" /etc/bdsnap/conf.d'
is "below the configuration: it is left, the secret is not" etc/bdsnap/conf.d/x "$left"

purge "a link to a store" 'ln -s "$dir/store" /run/bdsnap/store'
is "a link to a store: the link goes, the store stays" '' "$left"

# As in a chroot without /proc: no list of mounts.
purge "no list of mounts" 'mkdir -p /run/bdsnap/store; mount --bind "$dir/store" /run/bdsnap/store; mount -t tmpfs tmpfs /proc'
is "no list of mounts: another file system is left" run/bdsnap/store/x "$left"
purge "no list of mounts, the folder itself" 'mount --bind "$dir/store" /run/bdsnap; mount -t tmpfs tmpfs /proc'
is "no list of mounts, the folder itself: it is left" run/bdsnap/x "$left"
exit $failed
