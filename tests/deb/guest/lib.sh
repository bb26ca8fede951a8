# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the scripts that run in a booted system, from /host.

set -uo pipefail
ok() { echo "ok $*"; }
not_ok() { echo "not ok $*"; }
# is NAME EXPECTED ACTUAL
is() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1: expected '$2', got '$3'"; fi; }
# has NAME PATTERN TEXT
has() { if grep -qE -- "$2" <<<"$3"; then ok "$1"; else not_ok "$1: no '$2' in: $3"; fi; }
# hasnt NAME PATTERN TEXT
hasnt() { if grep -qE -- "$2" <<<"$3"; then not_ok "$1: '$2' in: $3"; else ok "$1"; fi; }
# when PROPERTY UNIT: a time since boot in microseconds; 0: never
when() { systemctl show -P "$1" "$2"; }
# order NAME TIME...: each there, and none before the one that it follows
order() {
	local name=$1 before=1 time
	shift
	for time; do
		if [ "$time" -lt "$before" ]; then
			not_ok "$name: $*"
			return
		fi
		before=$time
	done
	ok "$name"
}
# records NAME DEVICE: a session runs on it, and nothing is wrong with it
records() {
	local text
	text=$(bdsnap status "$2" 2>&1)
	if grep -q "protected  recording" <<<"$text" && ! grep -q BROKEN <<<"$text"; then ok "$1"; else not_ok "$1: $text"; fi
}
# failed_units: what systemd could not do
failed_units() { systemctl --failed --plain --no-legend | awk '{ print $1 }' | paste -sd ' '; }
