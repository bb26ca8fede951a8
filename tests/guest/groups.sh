#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Filesystems of several devices on /dev/vda to vdf. Copies for the host to compare: NAME.a and NAME.b
# must be equal.

. "$(dirname "$0")/lib.sh"

# newest COLUMN DEVICE: of its newest session
newest() { column "$1" "$2" | sed "s/.* //"; }
group() { newest group_id "$1"; }
# incomplete DEVICE: as its newest session's header says it
incomplete() { bdsnap-testtool json group_incomplete <"/snapshot/$(newest name "$1")/meta.json"; }
# session DEVICE [OPTIONS]
session() {
	mount ${2:+-o "$2"} "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work 1 2 || not_ok "$1: load"
	umount /mnt
}

load
modprobe -a btrfs xfs

# ---- btrfs of two ----

mkfs.btrfs -q -f -d raid0 -m raid1 /dev/vda /dev/vdb
sync
for device in /dev/vda /dev/vdb; do
	activate $device
	copy $device "${device##*/}.before"
done
btrfs device scan /dev/vda /dev/vdb
session /dev/vda
former=$(group /dev/vda)
must "a group on vda" 32 ${#former}
is "both devices of a btrfs are one group" "$(group /dev/vda)" "$(group /dev/vdb)"
is "and it is complete" false "$(incomplete /dev/vda)"
copy /dev/vda vda.now
copy /dev/vdb vdb.now
try bdsnap-restore /dev/vda latest --yes --alone
is "one of them, if it is asked for" 0 $code
try bdsnap-restore /dev/vdb latest --yes --alone
is "and the other" 0 $code
for name in vda vdb; do
	copy /dev/$name btrfs-$name.a
	mv /host/$name.before /host/btrfs-$name.b
done
btrfs device scan /dev/vda /dev/vdb
session /dev/vda
differ "another mount is another group" "$former" "$(group /dev/vda)"
deactivate /dev/vdb
session /dev/vda
is "without the other registered it is incomplete" true "$(incomplete /dev/vda)"

# ---- ext4 with its journal elsewhere, xfs with its log elsewhere ----

mke2fs -q -F -O journal_dev -b 4096 /dev/vdd
mke2fs -q -F -t ext4 -b 4096 -J device=/dev/vdd /dev/vdc
mkfs.xfs -q -f -l logdev=/dev/vdf,size=64m /dev/vde || not_ok "mkfs.xfs"
sync
for device in /dev/vdc /dev/vdd /dev/vde /dev/vdf; do
	activate $device
	copy $device "${device##*/}.before"
done
session /dev/vdc
session /dev/vde logdev=/dev/vdf
is "ext4 and its journal are one group" "$(group /dev/vdc)" "$(group /dev/vdd)"
is "xfs and its log are one group" "$(group /dev/vde)" "$(group /dev/vdf)"
for name in vdc vdd vde vdf; do
	try bdsnap-restore /dev/$name latest --yes --alone
	is "restore $name alone" 0 $code
	copy /dev/$name external-$name.a
	mv /host/$name.before /host/external-$name.b
done

# ---- A device that comes later ----

mkfs.btrfs -q -f -d single -m single /dev/vda
sync
activate /dev/vdb
copy /dev/vdb vdb.before
n=$(list "sessions.#" /dev/vdb)
mount /dev/vda /mnt || not_ok "mount"
btrfs device add -f /dev/vdb /mnt || not_ok "device add"
bdsnap-testtool work /mnt/work 1 2 || not_ok "load"
btrfs device remove /dev/vdb /mnt || not_ok "device remove"
umount /mnt
is "a device that was added and removed has its session" "mount closed" "$(newest kind /dev/vdb) $(newest state /dev/vdb)"
bdsnap settle --raw
first=$(column name /dev/vdb | cut -d " " -f $((n + 1)))
try bdsnap-restore /dev/vdb "$first" --yes --alone
is "back to before it was added" 0 $code
copy /dev/vdb added.a
mv /host/vdb.before /host/added.b
# ---- One that comes later, and is not registered ----

deactivate /dev/vdb
mkfs.btrfs -q -f -d single -m single /dev/vda
sync /dev/vda
bdsnap settle --raw
mount /dev/vda /mnt || not_ok "mount"
bdsnap-testtool work /mnt/before 1 1 || not_ok "load"
sync
is "before it came all is there" false "$(incomplete /dev/vda)"
session=$(newest name /dev/vda)
# slot: state and what happened later, of the status slot that counts, as the medium has it
slot() {
	local at newest=0 generation found=""
	for at in 8192 12288; do
		generation=$(od -An -tu8 -j $((at + 24)) -N 8 "/snapshot/$session/blocks.map" | tr -d " ")
		[ "$generation" -gt "$newest" ] || continue
		newest=$generation
		found="$(od -An -tu1 -j $((at + 32)) -N 1 "/snapshot/$session/blocks.map") $(od -An -tu4 -j $((at + 148)) -N 4 "/snapshot/$session/blocks.map")"
	done
	echo $found
}
is "its session is recording" "1 0" "$(slot)"
btrfs device add -f /dev/vdb /mnt || not_ok "device add"
is "that it came is in the store at once" "1 1" "$(slot)"
is "and in its description" true "$(incomplete /dev/vda)"
bdsnap-testtool work /mnt/work 1 2 || not_ok "load"
umount /mnt
is "and stays there" "2 1" "$(slot)"
try bdsnap-restore /dev/vda "$session" --yes
is "a restore of one of them is refused" 5 $code
is "because of that" yes "$([[ $out = *"not all of them were registered"* ]] && echo yes)"

complete
