#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Makes file systems that were not cleanly unmounted (on /dev/vdb to vde, from vda and vdf), mounts
# them in a session each, vdc and vde read-only, and restores them. Copies from before: /host/vdX.

. "$(dirname "$0")/lib.sh"

# dirty TYPE SOURCE COPY...: the COPYs become SOURCE as a power cut would leave it
dirty() {
	local type=$1 source=$2 copy
	shift 2
	make_fs "$type" "$source"
	mount "$source" /mnt
	load_on /mnt 1 1
	sync
	# In the journal, and not yet where it belongs
	for i in $(seq 100); do echo "$i" >"/mnt/late-$i"; done
	rm -r /mnt/work/many
	dd if=/dev/urandom of=/mnt/late bs=10000 count=3 conv=fsync status=none
	sync -f /mnt/late
	for copy; do dd if="$source" of="$copy" bs=1M iflag=direct oflag=direct status=none; done
	umount /mnt
	wipefs -aq "$source" # two of one UUID can't be mounted
}
dirty ext4 /dev/vda /dev/vdb /dev/vdc
is "ext4 is dirty" 1 "$(dumpe2fs -h /dev/vdb 2>/dev/null | grep -c needs_recovery)"
dirty xfs /dev/vdf /dev/vdd /dev/vde

load
for device in /dev/vdb /dev/vdc /dev/vdd /dev/vde; do
	copy $device ${device##*/}
	activate $device
done
# session DEVICE OPTION
session() {
	local name=$1
	dmesg -C
	mount -o "$2" "$1" /mnt || not_ok "$name: mount"
	case $2 in
	ro) ls -lR /mnt >/dev/null ;;
	*) load_on /mnt 2 1 ;;
	esac
	umount /mnt
	dmesg
	atleast "$1 ($2): the journal was replayed" 1 "$(dmesg | grep -cE 'recovery complete|Ending recovery')"
	copy "$1" "${1##*/}.after"
	is "$1 ($2): the session" "closed" "$(column state "$1")"
	try bdsnap-restore "$1" latest --yes
	is "$1 ($2): restore" 0 $code
}
session /dev/vdb rw
session /dev/vdc ro
session /dev/vdd rw
session /dev/vde ro
is "ext4 is dirty again" 1 "$(dumpe2fs -h /dev/vdb 2>/dev/null | grep -c needs_recovery)"
complete
