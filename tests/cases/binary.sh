#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: quick
#
# The module's machine code, where it must hold on processors that cannot be
# emulated here (indirect branch tracking) and where a mistake would hang a
# machine (a call-through that jumps into its own hook).

set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../scripts/lib/common.sh
. "$top/scripts/lib/common.sh"
need_host objdump=binutils

ko=$("$top/scripts/build-module" ${BDSNAP_KERNEL:+--kernel "$BDSNAP_KERNEL"} | tail -n 1)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
objdump -dr --no-show-raw-insn "$ko" >"$tmp/all"

failed=0
check() { # NAME REASON-IF-NOT COMMAND...
	local name=$1 reason=$2
	shift 2
	if "$@"; then echo "ok binary: $name"; else echo "not ok binary: $name: $reason"; failed=1; fi
}
# code FUNCTION: its instructions with relocations
code() { awk -v f="<$1>:" '$2 == f { on = 1; next } on && /^$/ { exit } on' "$tmp/all"; }

starts_with_endbr() { code "$1" >"$tmp/f"; head -n 1 "$tmp/f" | grep -q endbr64; }
for f in bdsnap_submit bdsnap_open bdsnap_fput bdsnap_syscall; do
	check "$f starts with endbr64" "an indirect branch to it would fault" starts_with_endbr "$f"
done

# The call, not a jump, to the exported original, and its return address
# within the window that the hooks' callbacks look at.
calls_through() { # FUNCTION ORIGINAL
	code "$1" >"$tmp/f"
	! grep -qE "R_X86_64_(PLT32|PC32)[[:space:]]+$2" "$tmp/f" && return 1
	awk -v orig="$2" '
		/^ *[0-9a-f]+:\t/ { addr = $1; sub(":", "", addr); if (first == "") first = addr; op = $2; prev = addr }
		index($0, "R_X86_64") && index($0, orig) { if (op != "call") bad = 1; else ok = 1; callat = prev }
		END { print first, callat; exit !(ok && !bad) }' "$tmp/f" >"$tmp/at" || return 1
	read -r first callat <"$tmp/at"
	# A call has five bytes.
	[ $((16#$callat + 5 - 16#$first)) -lt "$(sed -n 's/^#define CALL_THROUGH_BYTES //p' "$top/src-kmod/shim.c")" ]
}
check "call-through of submit_bio_noacct" "not a call, or too far in" calls_through bdsnap_orig_submit submit_bio_noacct
check "call-through of bdev_file_open_by_dev" "not a call, or too far in" calls_through bdsnap_orig_open bdev_file_open_by_dev
check "call-through of bdev_fput" "not a call, or too far in" calls_through bdsnap_orig_fput bdev_fput

# Calls through pointers go to what kernel structures hold; the module makes
# none of its own to addresses that it has looked up.
no_looked_up_calls() { ! grep -qE 'kallsyms_lookup_name|sys_call_table' <(objdump -t "$ko"); }
check "no calls to addresses that were looked up" "kallsyms_lookup_name or the system call table" no_looked_up_calls

# The test must be able to fail.
check "the check for calls sees a missing one" "it does not" eval '! calls_through bdsnap_orig_submit bdev_fput'
check "the check for endbr64 sees a missing one" "it does not" eval '! starts_with_endbr no_such_function'
exit "$failed"
