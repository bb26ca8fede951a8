#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# See tests/cases/sync-error.sh. /dev/vda: device, /dev/vdb: store, below dm. Only the block with the records of
# blocks.map cannot be written, which nobody learns before a sync.

. "$(dirname "$0")/lib.sh"

sectors=$(blockdev --getsz /dev/vdb)
whole="0 $sectors linear /dev/vdb 0"
# write SEEK COUNT: MiB, four at a time
write() { dd if=/dev/urandom of=/dev/vda bs=4M seek=$(($1 / 4)) count=$(($2 / 4)) oflag=direct conv=notrunc status=none; }

dmsetup create store --table "$whole"
dmsetup mknodes
mkfs.ext4 -q -F -b 4096 /dev/mapper/store
mount /dev/mapper/store /snapshot || die "the store"
bdsnap init || die "bdsnap init"
random 64 /dev/vda
load min_free_mib=0 raw_idle_s=600
activate --durability strict /dev/vda
# The first large batch makes the map's places, later ones find them and have one flush with blocks.dat.
for before in 0 8; do
	name="after $before MiB"
	dd if=/dev/urandom of=/dev/vda bs=4k count=1 oflag=direct conv=notrunc status=none
	[ $before = 0 ] || write 8 $before
	is "$name: recording" recording "$(status devices.0.state)"
	map=$(ls -d /snapshot/vda_*/ | tail -n 1)blocks.map
	# Its fifth block, by which the header and the status are over
	block=$(filefrag -b4096 -v "$map" | awk '$1 ~ /^[0-9]+:$/ { gsub(/[.:]/, " "); if ($2 <= 4 && 4 <= $3) print $4 + 4 - $2 }')
	at=$((block * 8))
	switch store "0 $at linear /dev/vdb 0
$at 8 error
$((at + 8)) $((sectors - at - 8)) linear /dev/vdb $((at + 8))"
	write 32 16 || not_ok "$name: the writes go on"
	is "$name: broken" "broken 5" "$(status devices.0.state) $(status devices.0.errno)"
	switch store "$whole"
	bdsnap settle --raw || not_ok "$name: settle"
	is "$name: the store says so" "broken 5" "$(last state /dev/vda) $(last errno /dev/vda)"
	try bdsnap-restore /dev/vda latest --yes
	[ "$code" != 0 ] || not_ok "$name: a restore without a word"
	dmesg -c >/dev/null
done
# The next one is whole.
was=$(sha256sum /dev/vda)
write 0 32
bdsnap settle --raw || not_ok "settle"
is "the next session" closed "$(last state /dev/vda)"
bdsnap-restore /dev/vda latest --yes --no-undo --accept-gap || not_ok "restore"
is "byte for byte" "$was" "$(sha256sum /dev/vda)"
complete
