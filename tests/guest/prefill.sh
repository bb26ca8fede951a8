#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# prefill.sh HOW: single small writes to /dev/vda, one after the other. In strict their pre-images find their place
# in the store made (src-kmod/pure/prefill.rs): hardly any needs the journal of its file system.

. "$(dirname "$0")/lib.sh"
how=$1 writes=300
# What the journal of the store's ext4 has committed
transactions() { sed -n '1s/ .*//p' "/proc/fs/jbd2/$(basename "$(findmnt -no SOURCE /snapshot)")-8/info"; }

load
copy /dev/vda before
activate --durability "$how" /dev/vda
# With it the session's files are made.
dd if=/dev/urandom of=/dev/vda bs=4k count=1 seek=7 oflag=direct conv=notrunc status=none
before=$(transactions)
# In no order, since 307 is a prime
for ((i = 1; i <= writes; i++)); do
	dd if=/dev/urandom of=/dev/vda bs=4k count=1 seek=$((i * 181 % 307 * 64)) oflag=direct conv=notrunc status=none
done
took=$(($(transactions) - before))
cd /snapshot/vda_*/ || die "a session"
dat=$(stat -c %s blocks.dat)
if [ "$how" = strict ]; then
	# A file system commits by itself every five seconds.
	atmost "$how: transactions of the journal for $writes writes" 60 $took
	atleast "$how: zeros are in front" $(((writes + 2) * 4096)) "$dat"
	bdsnap verify "$(column name)" || not_ok "$how: verify of what is recorded"
fi
cd / || exit
bdsnap settle --raw
session=$(column name)
is "$how: the session is closed" closed "$(column state)"
is "$how: blocks.dat was cut to what was saved" $(((writes + 1) * 4096)) "$(stat -c %s "/snapshot/$session/blocks.dat")"
records=$((($(stat -c %s "/snapshot/$session/blocks.map") - 16384) / 64 - 1))
# The start, a commit for each batch, and one or a few writes in each
atmost "$how: so was blocks.map" $((2 * (writes + 1))) $records
bdsnap verify "$session" || not_ok "$how: verify"
deactivate /dev/vda
bdsnap-restore /dev/vda "$session" --yes --no-undo --accept-gap || not_ok "$how: restore"
copy /dev/vda after
complete
