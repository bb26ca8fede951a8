#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# zeros.sh HOW: what was never written on /dev/vda takes no space in the store when it is. The first 8 MiB were.

. "$(dirname "$0")/lib.sh"
how=$1
mib=$((1 << 20))
# over COUNT SIZE SEEK: new content
over() { dd if=/dev/urandom of=/dev/vda bs="$2" count="$1" seek="$3" oflag=direct conv=notrunc status=none || not_ok "writing at $3"; }

random 8 /dev/vda
# Zeros but for a last byte, and but for a first one
printf x | dd of=/dev/vda bs=1 seek=$((20 * mib - 1)) conv=notrunc status=none
printf x | dd of=/dev/vda bs=1 seek=$((24 * mib)) conv=notrunc status=none
sync
load raw_idle_s=60 read_ahead_kib=0
copy /dev/vda before
activate --durability "$how" /dev/vda
for ((i = 0; i < 100; i++)); do over 1 4k $((4096 + i * 37 % 101 * 16)); done
over 8 1M 32
over 4 1M 2
over 2 4k $((20 * 256 - 2))
over 1 4k $((24 * 256))
blkdiscard -z -o $((48 * mib)) -l $((4 * mib)) /dev/vda || not_ok "writing zeroes"
bdsnap verify "$(column name)" || not_ok "$how: verify of what is recorded"
bdsnap settle --raw
session=$(column name)
is "$how: the session" closed "$(column state)"
# 4 MiB, and the two chunks with a byte
is "$how: blocks.dat has what was not zero" $((4 * mib + 2 * 4096)) "$(stat -c %s "/snapshot/$session/blocks.dat")"
bdsnap inspect "$session" --json >"$work/inspect"
zeros=$(((100 + 1) * 4096 + (8 + 4) * mib))
is "$how: all is in the index" "$((zeros + 4 * mib + 2 * 4096)) $zeros" \
	"$(bdsnap-testtool json saved_bytes <"$work/inspect") $(bdsnap-testtool json zero_bytes <"$work/inspect")"
bdsnap verify "$session" || not_ok "$how: verify"
try bdsnap-restore /dev/vda "$session" --yes
is "$how: restore" 0 $code
bdsnap list
complete
