#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# taint.sh before: with discard=2, a discard of /dev/vda in a raw session of its own; one in a session with other
# content, on vdb mounted; an image on vdc mounted by two loop devices; then the machine ends. vdd: what is saved as
# well is not tainted.
# taint.sh after: what the store says of them.

. "$(dirname "$0")/lib.sh"

image=/images/image
states() { bdsnap list --json "$1" | jq -r '[.sessions[].state] | join(" ")'; }
gaps() { bdsnap list --json "$1" | jq -r '[.sessions[].gap_before] | join(" ")'; }
# refused NAME DEVICE SESSION: a restore of it
refused() {
	try bdsnap-restore "$2" "$3" --yes
	is "$1: restore is refused" 5 $code
}

case $1 in
before)
	load discard=2 raw_idle_s=60

	# ---- A raw session that saves nothing ----

	random 48 /dev/vda
	sync
	activate /dev/vda
	copy /dev/vda discarded.0
	dd if=/dev/urandom of=/dev/vda bs=4k seek=1000 count=4 conv=notrunc oflag=direct status=none
	bdsnap settle --raw
	blkdiscard -o 16M -l 8M /dev/vda || not_ok "discard"
	bdsnap settle --raw
	dd if=/dev/urandom of=/dev/vda bs=4k seek=2000 count=4 conv=notrunc oflag=direct status=none
	bdsnap settle --raw
	copy /dev/vda discarded.1
	first=$(bdsnap list --json /dev/vda | jq -r '.sessions[0].name')
	# The session itself tells, or a link over it.
	tells=$(bdsnap list --json /dev/vda | jq '[.sessions[] | .state == "tainted" or .gap_before != "none"] | any')
	[ "$tells" = true ] || not_ok "a discard by itself: states '$(states /dev/vda)', gaps '$(gaps /dev/vda)'"
	refused "a discard by itself" /dev/vda "$first"

	# ---- Discards of what is saved already ----

	random 48 /dev/vdd
	sync
	activate /dev/vdd
	dd if=/dev/urandom of=/dev/vdd bs=1M seek=16 count=8 conv=notrunc oflag=direct status=none
	blkdiscard -o 16M -l 8M /dev/vdd || not_ok "discard"
	bdsnap settle --raw
	is "a discard of what is saved: not tainted" closed "$(states /dev/vdd)"

	# ---- In sessions that are cut ----

	make_fs ext4 /dev/vdb
	mount /dev/vdb /mnt
	random 8 /mnt/old
	random 8 /mnt/gone
	umount /mnt
	make_fs ext4 /dev/vdc
	mkdir /images
	mount /dev/vdc /images
	truncate -s 32M $image
	make_fs ext4 $image
	sync
	activate /dev/vdb
	activate $image
	mount /dev/vdb /mnt || not_ok "mount"
	dd if=/dev/urandom of=/mnt/old bs=1M count=4 conv=notrunc oflag=direct status=none
	loop=$(losetup --show -f $image)
	mkdir "$work/a" "$work/b"
	mount "$loop" "$work/a" || not_ok "mount of the image"
	random 2 "$work/a/file"
	sync
	must "no taint yet" "recording recording" "$(states /dev/vdb) $(states $image)"
	loop=$(losetup --show -f $image)
	mount "$loop" "$work/b" || not_ok "second mount of the image"
	random 1 "$work/b/other"
	sync
	is "an image mounted twice: the store says so at once" tainted "$(jq -r .state "/snapshot/$(last name $image)/meta.json")"
	rm /mnt/gone
	sync
	sync -f /host
	fstrim /mnt
	echo b >/proc/sysrq-trigger
	sleep 100
	;;
after)
	mkdir /images
	mount /dev/vdc /images
	load
	is "a discard with others, cut: tainted" tainted "$(states /dev/vdb)"
	is "an image mounted twice, cut: tainted" tainted "$(states $image)"
	try bdsnap verify --all
	is "verify" 0 $code
	for device in /dev/vdb $image; do
		try bdsnap-restore $device latest --yes --accept-gap
		is "$device: not restored as if it were whole" 5 $code
	done
	complete
	;;
esac
