#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: debug
# timeout: 400
#
# Do the debug kernel's detectors see what they are there for? If not, their silence in the other cases
# means nothing.

# shellcheck disable=SC2016
. "$(dirname "$0")/../lib.sh"

modules=$("$top/scripts/build-module" --kernel "$BDSNAP_KERNEL" --source "$top/tests/rig/provoke" | tail -n 1)
[ -e "$modules/provoke_rust.ko" ] || not_ok "this kernel has no KASAN"

# The order of locks comes first, since the kernel stops looking at it after other complaints. The leak comes
# last: its module stays, so that its functions have names.
status=0
"$top/scripts/vm" --kernel "$BDSNAP_KERNEL" --no-module --no-tools --store none --share "$modules" --log "$dir/log" \
	--append kasan_multi_shot -- '
	for what in order sleep list timer shift freed beyond rust leak; do
		echo "provoke: $what" >/dev/kmsg
		case $what in
		rust) insmod /host/provoke_rust.ko; rmmod provoke_rust ;;
		leak) insmod /host/provoke.ko what=leak ;;
		*) insmod /host/provoke.ko what=$what; rmmod provoke ;;
		esac
	done
	echo "provoke: end" >/dev/kmsg' 2>"$dir/err" || status=$?
tail -n 20 "$dir/err" >&2
# The serial line ends each line with a carriage return; the module's loading also says its name.
tr -d '\r' <"$dir/log" | grep -v 'provoke: loading' >"$dir/plain"
is "a guest with complaints ends with 99" 99 $status

# sees WHAT TEXT: what the kernel had to say of it
sees() {
	awk -v what="provoke: $1\$" '/provoke: / { open = $0 ~ what } open' "$dir/plain" >"$dir/part"
	if grep -q "$2" "$dir/part"; then ok "it sees: $1"; else not_ok "it sees: $1: no '$2' in the log"; fi
}
sees order 'WARNING: possible circular locking dependency detected'
sees sleep 'BUG: sleeping function called from invalid context'
sees list 'list_del corruption'
sees timer 'ODEBUG: free active'
sees shift 'UBSAN: shift-out-of-bounds'
sees freed 'BUG: KASAN: slab-use-after-free in .*\[provoke\]'
sees beyond 'BUG: KASAN: slab-out-of-bounds in .*\[provoke\]'
sees rust 'BUG: KASAN: slab-use-after-free in .*provoke_rust'
is "it sees: leak" 1 $(($(grep -c 'unreferenced object' "$dir/log") >= 9))
exit $failed
