# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced by the cases, on the host. A guest's script prints results as well, see guest/lib.sh. What
# disks hold is judged here, by files that the guest has left: its disks' images, and copies in $share.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/bdsnap-test.XXXXXX")
# BDSNAP_KEEP=1 keeps the disks.
trap '[ -n "${BDSNAP_KEEP:-}" ] || rm -rf "$dir"' EXIT
trap 'exit 143' TERM INT HUP
share=$dir/share
mkdir "$share"
failed=0
# One kernel for all guests of a case, also where the case is run by itself.
BDSNAP_KERNEL=$("$top/scripts/kernel") || exit
export BDSNAP_KERNEL
# How the guests' processors are emulated (`# thread: multi` in the case): with `multi`, in parallel; with `multi debug`,
# only on the debug kernel, since it lasts longer than in one thread. An option of a guest's own comes after it.
read -r guest_thread guest_kernel < <(sed -n "1,20s/^# thread: *//p" "$0") || :
[ "$guest_kernel" != debug ] || [[ $BDSNAP_KERNEL = *-debug ]] || guest_thread=''

ok() { echo "ok $*"; }
not_ok() {
	echo "not ok $*"
	failed=1
}
skip() { echo "skip $*"; }
# is NAME EXPECTED ACTUAL
is() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1: expected '$2', got '$3'"; fi; }
# differ NAME A B
differ() { if [ "$2" != "$3" ]; then ok "$1"; else not_ok "$1: both are '$2'"; fi; }

# disk NAME SIZE: a fresh image
disk() { truncate -s "$2" "$dir/$1"; }
# hash FILE: of all its bytes; a word that equals nothing if there is none
hash() {
	if [ -e "$1" ]; then sha256sum <"$1" | cut -d ' ' -f 1; else echo "no file ${1##*/}"; fi
}
# equal NAME FILE FILE: byte for byte the same?
equal() { is "$1" "$(hash "$2")" "$(hash "$3")"; }
# unequal NAME FILE FILE: are both there, and not the same?
unequal() {
	if [ -e "$2" ] && [ -e "$3" ]; then differ "$1" "$(hash "$2")" "$(hash "$3")"; else not_ok "$1: a file is missing"; fi
}

# restored NAME: whether the guest's `round NAME` came back to where it began
restored() {
	unequal "$1: the session has changed it" "$share/$1.0" "$share/$1.1"
	equal "$1: as before, byte for byte" "$share/$1.0" "$share/$1.2"
}

# guest NAME [OPTION...] -- SCRIPT [ARG...]: runs tests/guest/SCRIPT; its result lines are the case's.
# Sets `status`; NAME is the result of the guest as a whole: the script ran to its end, and the kernel
# had nothing to complain about, nor had the module left anything behind.
guest() {
	local name=$1 options=()
	shift
	while [ "$1" != -- ]; do
		options+=("$1")
		shift
	done
	local script=$2
	shift 2
	status=0
	"$top/scripts/vm" --share "$share" --log "$dir/log" ${guest_thread:+--thread "$guest_thread"} \
		${options[@]+"${options[@]}"} -- bash "/tests/guest/$script" "$@" >"$dir/out" || status=$?
	cat "$dir/out"
	if grep -q '^not ok ' "$dir/out"; then failed=1; fi
	if [ $status != 0 ]; then
		echo "-- the module's lines in the kernel log, and the last ones:" >&2
		grep -a bdsnap "$dir/log" | tail -n 40 >&2
		tail -n 5 "$dir/log" >&2
	fi
	is "$name" 0 $status
}

# pairs LEAST NAME: the guest has left pairs of copies, X.a and X.b in $share, at least so many, equal byte for byte
pairs() {
	local file name count=0
	for file in "$share"/*.a; do
		[ -e "$file" ] || continue
		name=$(basename "$file" .a)
		equal "$2: $name" "$file" "$share/$name.b"
		count=$((count + 1))
	done
	[ $count -ge "$1" ] || not_ok "all pairs: only $count"
}
