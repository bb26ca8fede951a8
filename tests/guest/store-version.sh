#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Sessions of both versions on /dev/vda, identities on /dev/vdb. Copies for the host to compare: NAME.a and NAME.b must be
# equal.

. "$(dirname "$0")/lib.sh"
marker=/snapshot/.bdsnap-store
# make_old: as if the store had been made by the first version
make_old() { printf 1 | dd of=$marker bs=1 seek=13 conv=notrunc,fsync status=none; }
version() { head -n 1 $marker; }
# version_of SESSION: as its header says it
version_of() { od -An -tu4 -j 8 -N 4 "/snapshot/$1/blocks.map" | tr -d " "; }
put() { dd if=/dev/urandom of="$1" bs=4k seek="$2" count="$3" oflag=direct conv=notrunc,nocreat status=none; }
settle() { bdsnap settle --raw || not_ok "settle"; }
log_has() { dmesg | grep -c "$1"; }

random 32 /dev/vda
sync /dev/vda
bdsnap init || not_ok "init"
is "a new store is of the newest version" "bdsnap-store 2" "$(version)"
make_old
load raw_idle_s=60
is "the module's loading makes an old one new" "bdsnap-store 2" "$(version)"
atleast "and that is said" 1 "$(log_has 'the store is of version 2')"

# ---- One chain over both ----

activate /dev/vda
copy /dev/vda one.b
put /dev/vda 100 300
settle
one=$(last name /dev/vda)
is "the module writes version 2" 2 "$(version_of "$one")"
make_old
is "the status says what the store is" 1 "$(status module.store_version)"
copy /dev/vda two.b
# What the tools write is what the marker says.
bdsnap-restore /dev/vda "$one" --yes || not_ok "restore"
two=$(last name /dev/vda)
is "an undo session in an old store is an old one" "1 undo" "$(version_of "$two") $(last kind /dev/vda)"
copy /dev/vda three.b
put /dev/vda 200 300
settle
three=$(last name /dev/vda)
is "the module's next session is a new one" 2 "$(version_of "$three")"
is "and so is the store, again" "bdsnap-store 2" "$(version)"
atleast "which the module says" 1 "$(log_has 'bdsnap: the store is of version 2')"
is "no gap in the chain" "none none none" "$(column gap_before /dev/vda)"
try bdsnap verify --all
is "verify" 0 $code
for name in one two three; do
	try bdsnap-restore /dev/vda "${!name}" --to "/host/$name.a"
	is "the start of $name" 0 $code
done
# The old one is merged into a new one.
bdsnap hold "$one" test || not_ok "hold"
try bdsnap-prune --keep-last 1 --min-age 0 --apply
is "prune" 0 $code
is "one is left less" 2 "$(list 'sessions.#' /dev/vda)"
must "which" "$one $three" "$(column name /dev/vda)"
cp /host/one.b /host/pruned.b
try bdsnap-restore /dev/vda "$one" --to /host/pruned.a
is "the oldest that is left" 0 $code
try bdsnap-restore /dev/vda "$three" --yes
is "the newest" 0 $code
copy /dev/vda last.a
cp /host/three.b /host/last.b

# ---- By hand ----

make_old
try bdsnap init --upgrade
is "init --upgrade" "0 yes" "$code $([[ $out = *"of version 2 now"* ]] && echo yes)"
is "does it" "bdsnap-store 2" "$(version)"
try bdsnap init --upgrade
is "and only once" "0 yes" "$code $([[ $out = *"of version 2 already"* ]] && echo yes)"

# ---- What a session says of its device ----

printf 'label: gpt\n2048,40000\n,\n' | sfdisk -q /dev/vdb
partprobe /dev/vdb 2>/dev/null || blockdev --rereadpt /dev/vdb
make_fs ext4 /dev/vdb2
sync
activate /dev/vdb2
mount /dev/vdb2 /mnt || not_ok "mount"
dd if=/dev/urandom of=/mnt/file bs=64k count=4 status=none
umount /mnt
meta() { bdsnap-testtool json "$1" <"/snapshot/$(last name /dev/vdb2)/meta.json"; }
# uuid TAG: as blkid says it, without dashes
uuid() { blkid -p -s "$1" -o value /dev/vdb2 | tr -d -- -; }
is "the serial number" "$(cat /sys/block/vdb/serial)" "$(meta serial)"
is "the file system's identity" "$(uuid UUID)" "$(meta fs_uuid)"
# The first three fields have their low bytes first.
swapped=$(uuid PART_ENTRY_UUID | sed -E 's/(..)(..)(..)(..)(..)(..)(..)(..)(.*)/\4\3\2\1\6\5\8\7\9/')
is "the partition's" "$swapped" "$(meta partuuid)"
is "its medium's number" "$(cat /sys/block/vdb/diskseq)" "$(meta diskseq)"
is "the file system's mounts" 0 "$(meta fs_writes)"
atleast "the disk's written sectors" 1 "$(meta disk_sectors)"
deactivate /dev/vdb2

# ---- A newer store ----

printf 3 | dd of=$marker bs=1 seek=13 conv=notrunc,fsync status=none
try bdsnap list
is "a store of an unknown version" "4 yes" "$code $([[ $out = *"a store of version 3"* && $out = *upgrade* ]] && echo yes)"
put /dev/vda 400 8 || not_ok "the write does not go on"
is "the module's session breaks" broken "$(status devices.0.state /dev/vda)"
atleast "which the log explains" 1 "$(log_has "a store of version 3")"
try bdsnap status --check
differ "and that is complained of" 0 $code
printf 2 | dd of=$marker bs=1 seek=13 conv=notrunc,fsync status=none
settle
deactivate /dev/vda
complete
