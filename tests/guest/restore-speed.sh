#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# How fast a restore writes /dev/vda, compared with dd of the same bytes to the same device. Best of three each.

. "$(dirname "$0")/lib.sh"
# shellcheck source=../bench/lib.sh
. "$(dirname "$0")/../bench/lib.sh"

# milliseconds COMMAND...: how long it takes, in milliseconds
milliseconds() {
	local start
	start=$(date +%s%N)
	"$@" || return
	echo $((($(date +%s%N) - start) / 1000000))
}
# least A B: the smaller; A may be empty
least() { if [ -z "$1" ] || [ "$2" -lt "$1" ]; then echo "$2"; else echo "$1"; fi; }
by_dd() { dd if="/snapshot/$session/blocks.dat" of=/dev/vda bs=1M conv=fsync status=none; }

load
copy /dev/vda before
activate /dev/vda
dd if=/dev/zero of=/dev/vda bs=1M conv=fsync status=none
bdsnap settle --raw
session=$(column name)
bytes=$(stat -c %s "/snapshot/$session/blocks.dat")
is "all of the device was saved" "$(blockdev --getsize64 /dev/vda)" "$bytes"
deactivate /dev/vda
fastest_dd='' fastest_restore=''
for i in 1 2 3; do
	# Both find the store's data in the page cache, the restore because it verifies it first.
	cat "/snapshot/$session/blocks.dat" >/dev/null
	took=$(milliseconds by_dd) || not_ok "dd"
	fastest_dd=$(least "$fastest_dd" "$took")
	dd if=/dev/zero of=/dev/vda bs=1M conv=fsync status=none
	bdsnap-restore /dev/vda "$session" --yes --no-undo --accept-gap --json-lines >"$work/lines" || not_ok "restore"
	took=$(grep '"phase":"restore"' "$work/lines" | tail -n 1 | sed 's/.*"seconds":\([0-9]*\)\.\([0-9]\{3\}\).*/\1\2/')
	fastest_restore=$(least "$fastest_restore" "$((10#$took))")
	grep '"type":"progress"' "$work/lines" | grep '"done":'"$bytes"
	echo "round $i: dd $fastest_dd ms, restore $fastest_restore ms so far"
done
ratio=$((fastest_dd * 1000 / fastest_restore))
echo "# $((bytes >> 20)) MiB: dd $fastest_dd ms, the restore's write phase $fastest_restore ms: $ratio thousandths of its speed" >&3
atleast "the write phase has 0.9 of dd's speed" 900 $ratio
copy /dev/vda after

# ---- Pieces in no order: a disk's latency is not waited for again and again ----

nullb slow 32
writes=512
copy /dev/slow slow-before
activate /dev/slow
for ((i = 0; i < writes; i++)); do echo "$i" | dd of=/dev/slow bs=4k seek=$((i * 16)) conv=notrunc,sync status=none; done
bdsnap settle --raw
session=$(column name /dev/slow)
deactivate /dev/slow
bdsnap-restore /dev/slow "$session" --yes --no-undo --accept-gap --json-lines >"$work/lines" || not_ok "restore"
# One after the other each phase would take four milliseconds a piece, however fast the processor is.
for phase in compare check; do
	took=$(grep '"phase":"'$phase'"' "$work/lines" | tail -n 1 | sed 's/.*"seconds":\([0-9]*\)\.\([0-9]\{3\}\).*/\1\2/')
	echo "# $writes pieces, $phase: $((10#$took)) ms" >&3
	atmost "$phase: many reads at a time" $((writes * 4 * 3 / 4)) $((10#$took))
done
copy /dev/slow slow-after
complete
