# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the scripts that run in the guest. Results go to the standard output, all else to the
# standard error. The store is at /snapshot, the host's folder at /host.

set -uo pipefail
exec 3>&1 1>&2
work=$(mktemp -d)
password=$work/password
echo "correct horse" >"$password"

ok() { echo "ok $*" >&3; }
not_ok() { echo "not ok $*" >&3; }
skip() { echo "skip $*" >&3; }
# is NAME EXPECTED ACTUAL
is() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1: expected '$2', got '$3'"; fi; }
# differ NAME A B
differ() { if [ "$2" != "$3" ]; then ok "$1"; else not_ok "$1: both are '$2'"; fi; }
# Like `is`, but a success is too small to be told.
must() { [ "$2" = "$3" ] || not_ok "$1: expected '$2', got '$3'"; }
# atmost NAME LIMIT ACTUAL, atleast NAME LIMIT ACTUAL
atmost() { if [ "$3" -le "$2" ]; then ok "$1"; else not_ok "$1: $3 is more than $2"; fi; }
atleast() { if [ "$3" -ge "$2" ]; then ok "$1"; else not_ok "$1: $3 is less than $2"; fi; }
# die TEXT: there is no point in going on
die() {
	not_ok "$*"
	exit 1
}
# try COMMAND...: sets `code` to its status, `out` to what it printed, both streams
try() {
	code=0
	out=$("$@" 2>&1) || code=$?
	echo "+ $* -> $code"
	[ -z "$out" ] || echo "$out"
}

# shellcheck source=fs-table.sh
. "$(dirname "${BASH_SOURCE[0]}")/fs-table.sh"

# Nobody makes their nodes here, so that nothing would load them.
modprobe -a loop dm-mod

# load [PARAMETER=VALUE...]: password and module
load() {
	[ -e /etc/bdsnap/secret ] || bdsnap passwd --password-file "$password" || die "bdsnap passwd"
	# On a busy machine a write held too long is no news, least of all with the debug kernel. What is about the
	# deadline says its own (the kernel takes a parameter once only).
	local limit=60000
	[[ $(uname -r) != *-debug ]] || limit=120000
	[[ " $*" = *" hold_timeout_ms="* ]] || set -- hold_timeout_ms=$limit "$@"
	modprobe bdsnap "$@" || die "modprobe bdsnap $*"
}
activate() { bdsnap activate "$@" --password-file "$password"; }
deactivate() { bdsnap deactivate "$@" --password-file "$password"; }
# copy DEVICE NAME: what the device holds, past all caches, for the host to judge
copy() { dd if="$1" of="/host/$2" bs=1M iflag=direct conv=sparse status=none || die "copying $1"; }
# status PATH [DEVICE], list PATH [DEVICE]: a value of the tools' JSON
status() { bdsnap status ${2:+"$2"} --json | bdsnap-testtool json "$1"; }
list() { bdsnap list --json ${2:+"$2"} | bdsnap-testtool json "$1"; }
# column NAME [DEVICE]: of each session, in the order of the list, in one line
column() {
	local i n
	n=$(list 'sessions.#' ${2:+"$2"})
	for ((i = 0; i < n; i++)); do list "sessions.$i.$1" ${2:+"$2"}; done | paste -sd ' '
}
# random MIB FILE
random() { dd if=/dev/urandom of="$2" bs=1M count="$1" status=none; }
# switch NAME TABLE: the table of that dm device; what is written to it meanwhile waits
switch() { dmsetup suspend --noflush --nolockfs "$1" && dmsetup reload "$1" --table "$2" && dmsetup resume "$1"; }
# complete: the last line of each script
complete() { echo "complete" >&2; }

# load_on FOLDER SEED [MIB]: writes to a file system in every way there is. What it lacks goes to $work/lacks,
# a word or two a line.
load_on() {
	local lacks=$work/lacks
	bdsnap-testtool work "$1/work" "$2" "${3:-4}" >"$work/said" || not_ok "the load on $1"
	sed -n 's/^lacks //p' "$work/said" >"$lacks"
	if ! grep -q '^direct' "$lacks"; then
		fio --name=ring --directory="$1/work" --ioengine=io_uring --rw=randrw --bs=4k,4k --size=2M --iodepth=8 \
			--direct=1 --randseed="$2" --fallocate=none --output=/dev/null || not_ok "io_uring on $1"
	fi
	fstrim "$1" || echo fstrim >>"$lacks"
	sed 's/^/it lacks: /' "$lacks"
}

# round NAME FS DEVICE [SEED]: a file system, a session on it, and back. The host judges it with `restored NAME`.
round() {
	make_fs "$2" "$3" || not_ok "$1: mkfs"
	sync
	activate "$3" || not_ok "$1: activate"
	session_on "$@"
}
# session_on NAME FS DEVICE [SEED]: the same with what is there already, and registered
session_on() {
	local name=$1 device=$3
	copy "$device" "$name.0"
	fs_mount "$2" /mnt "$device" || not_ok "$name: mount"
	load_on /mnt "${4:-1}" 1
	umount /mnt || not_ok "$name: umount"
	copy "$device" "$name.1"
	is "$name: its session" "mount closed" "$(last kind "$device") $(last state "$device")"
	try bdsnap-restore "$device" latest --yes
	is "$name: restore" 0 $code
	copy "$device" "$name.2"
}
# last COLUMN [DEVICE]: of the newest session in the list
last() { column "$@" | awk '{ print $NF }'; }
