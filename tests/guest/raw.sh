#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Raw sessions on /dev/vda to vdj. Copies for the host to compare: NAME.a and NAME.b must be equal.

. "$(dirname "$0")/lib.sh"

kinds() { column kind "$1"; }
states() { column state "$1"; }
gaps() { column gap_before "$1"; }
settle() { bdsnap settle --raw || not_ok "settle"; }
# session DEVICE SEED
session() {
	mount "$1" /mnt || not_ok "$1: mount"
	bdsnap-testtool work /mnt/work "$2" 1 || not_ok "$1: load"
	umount /mnt
}
# restored NAME DEVICE SESSION STATE: the device is then what /host/STATE was
restored() {
	try bdsnap-restore "$2" "$3" --yes
	is "restore: $1" 0 $code
	copy "$2" "$1.a"
	cp "/host/$4" "/host/$1.b"
}

first() { column name "$1" | cut -d " " -f 1; }

load raw_idle_s=60

# ---- mkfs, mounts, fsck and tune2fs in a chain ----

device=/dev/vda
random 64 $device
copy $device empty
activate $device
make_fs ext4 $device
is "a raw session runs" true "$(status devices.0.raw)"
session $device 1
is "the claim has ended it" "raw mount" "$(kinds $device)"
copy $device first
tune2fs -L other $device
e2fsck -f -p $device
session $device 2
is "tools between mounts have their own" "raw mount raw mount" "$(kinds $device)"
is "no gap between any of them" "none none none none" "$(gaps $device)"
is "all closed" "closed closed closed closed" "$(states $device)"
restored "over-a-raw-session" $device latest~1 first
restored "back-before-mkfs" $device "$(first $device)" empty

# ---- fsck that replays a journal, as at boot, and resize2fs ----

make_fs ext4 /dev/vdi
mount /dev/vdi /mnt || not_ok "mount"
bdsnap-testtool work /mnt/work 1 2 || not_ok "load"
sync
random 1 /mnt/last
sync /mnt/last
device=/dev/vdj
# As it is without having been unmounted
dd if=/dev/vdi of=$device bs=1M iflag=direct oflag=direct status=none
umount /mnt
is "a journal to be replayed" 1 "$(dumpe2fs -h $device 2>/dev/null | grep -c needs_recovery)"
copy $device unclean
activate $device
try e2fsck -p $device
is "fsck has replayed it" 0 "$(dumpe2fs -h $device 2>/dev/null | grep -c needs_recovery)"
# resize2fs asks for it
e2fsck -fy $device || not_ok "clean after it"
settle
copy $device replayed
resize2fs $device 40M || not_ok "resize2fs, smaller"
session $device 2
e2fsck -fy $device || not_ok "clean after a mount"
resize2fs $device || not_ok "resize2fs, larger"
settle
is "fsck, resize2fs and a mount between" "raw raw mount raw" "$(kinds $device)"
is "a journal replayed: no gap" "none none none none" "$(gaps $device)"
restored "before-resize2fs" $device "$(column name $device | cut -d ' ' -f 2)" replayed
restored "before-the-journal-was-replayed" $device "$(first $device)" unclean

# ---- Ways to write, and the end by silence ----

device=/dev/vdb
random 64 $device
copy $device state0
activate $device
dd if=/dev/urandom of=$device bs=512 seek=12345 count=1 conv=notrunc,fsync status=none
dd if=/dev/urandom of=$device bs=64k seek=500 count=20 conv=notrunc oflag=direct status=none
fio --name=ring --filename=$device --ioengine=io_uring --rw=randwrite --bs=512 --size=4M --iodepth=16 --direct=1 \
	--output=/dev/null || not_ok "io_uring"
fio --name=map --filename=$device --ioengine=mmap --rw=randwrite --bs=4k --size=2M --offset=20M --output=/dev/null || not_ok "mmap"
blkdiscard -o 40M -l 1M $device || not_ok "discard"
blkdiscard -z -o 42M -l 1M $device || not_ok "write zeroes"
settle
is "closed" closed "$(states $device)"
dd if=/dev/urandom of=$device bs=4k seek=1 count=3 conv=notrunc,fsync status=none
settle
is "then another" "raw raw" "$(kinds $device)"
is "without a gap" "none none" "$(gaps $device)"
restored "ways-to-write" $device "$(first $device)" state0

# ---- A write that is held while its session ends ----

dd if=/dev/urandom of=$device bs=4k seek=9 count=1 conv=notrunc oflag=direct status=none
sessions=$(list 'sessions.#' $device)
fsfreeze -f /snapshot
dd if=/dev/urandom of=$device bs=4k seek=8000 count=1 conv=notrunc oflag=direct status=none &
writer=$!
for ((i = 0; i < 100; i++)); do [ "$(status devices.0.holding $device)" = 0 ] || break; sleep 0.1; done
is "a write is held" 1 "$(status devices.0.holding $device)"
bdsnap settle --raw &
settling=$!
for ((i = 0; i < 100; i++)); do [ "$(status devices.0.raw $device)" = true ] || break; sleep 0.1; done
is "its session ends" false "$(status devices.0.raw $device)"
fsfreeze -u /snapshot
wait $writer || not_ok "the write"
wait $settling || not_ok "settle"
settle
is "what it lets go is its own: no other session" "$sessions closed" "$(list 'sessions.#' $device) $(last state $device)"
dd if=/dev/urandom of=$device bs=4k seek=10 count=1 conv=notrunc oflag=direct status=none
settle
is "and no write outside of it" none "$(last gap_before $device)"

# ---- A partition and its disk ----

device=/dev/vdc
printf 'label: dos\n,32M,L\n,,L\n' | sfdisk -q $device
partprobe $device 2>/dev/null || blockdev --rereadpt $device
[ -e ${device}1 ] || for n in 1 2; do
	IFS=: read -r major minor <"/sys/block/vdc/vdc$n/dev"
	mknod ${device}$n b "$major" "$minor"
done
random 31 ${device}1
copy ${device}1 part0
activate ${device}1
dd if=/dev/urandom of=$device bs=1M seek=10 count=2 conv=notrunc,fsync status=none
dd if=/dev/urandom of=${device}2 bs=1M seek=10 count=2 conv=notrunc,fsync status=none
settle
is "a write to the whole disk is one to the partition" raw "$(kinds ${device}1)"
is "and only that" 2M "$(list sessions.0.saved_bytes ${device}1 | awk '{ print $1 / 1048576 "M" }')"
restored "a-partition-written-by-its-disk" ${device}1 latest part0
deactivate ${device}1

# ---- A device that grows ----

device=/dev/mapper/growing
disk=/dev/vdc
dmsetup create growing --table "0 65536 linear $disk 0"
dmsetup mknodes
make_fs ext4 $device
sync
copy $device grown0
activate $device
mount $device /mnt || not_ok "mount"
bdsnap-testtool work /mnt/work 1 1 || not_ok "load"
dmsetup suspend growing
dmsetup reload growing --table "0 98304 linear $disk 0"
dmsetup resume growing
resize2fs $device || not_ok "resize2fs"
umount /mnt
mount $device /mnt || not_ok "mount"
random 4 /mnt/file
umount /mnt
is "a device that grows: no gap" "none none" "$(gaps $device)"
try bdsnap-restore $device "$(first $device)" --yes
is "restore: to before it grew" 0 $code
dmsetup remove growing
dmsetup create growing --table "0 65536 linear $disk 0"
dmsetup mknodes
copy $device grown.a
mv /host/grown0 /host/grown.b
dmsetup remove growing

# ---- Below device mapper and md ----

device=/dev/vdd
random 64 $device
copy $device below0
dmsetup create top --table "0 $(blockdev --getsz $device) linear $device 0"
activate $device
is "held by dm is not mounted" false "$(status devices.0.unprotected $device)"
make_fs ext4 /dev/mapper/top
activate /dev/mapper/top
session /dev/mapper/top 1
settle
is "a file system above is raw writes below" raw "$(kinds $device | cut -d ' ' -f 1)"
is "registered above as well, it is a mount there" mount "$(kinds /dev/mapper/top)"
dmsetup remove top
restored "below-device-mapper" $device "$(first $device)" below0

random 64 /dev/vde
random 64 /dev/vdf
copy /dev/vde leg-e0
copy /dev/vdf leg-f0
activate /dev/vde
activate /dev/vdf
mdadm --quiet --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean /dev/vde /dev/vdf ||
	not_ok "mdadm"
[ -e /dev/md0 ] || mknod /dev/md0 b 9 0
make_fs ext4 /dev/md0
session /dev/md0 1
mdadm --quiet --stop /dev/md0
settle
restored "a-leg-of-md" /dev/vde "$(first /dev/vde)" leg-e0
restored "the-other-leg" /dev/vdf "$(first /dev/vdf)" leg-f0

# ---- An image ----

truncate -s 32M /snapshot/image
image=/snapshot/image
activate $image
loop=$(losetup -f --show $image)
bdsnap settle
copy "$loop" image0
make_fs ext4 "$loop"
session "$loop" 1
settle
is "an image: raw, then mount" "raw mount" "$(kinds $image)"
losetup -d "$loop"
restored "an-image" $image "$(first $image)" image0
# The loop device shows another file now, the registered image none.
truncate -s 32M /snapshot/other
loop2=$(losetup -f --show /snapshot/other)
is "the same loop device" "$loop" "$loop2"
make_fs ext4 "$loop2"
settle
is "another file's writes are not the image's" 3 "$(list 'sessions.#' $image)"
losetup -d "$loop2"

# At once after the writing, without a word to the module: the file tells how the session ended.
image=/snapshot/third
truncate -s 32M $image
activate $image
loop=$(losetup -f --show $image)
bdsnap settle
copy "$loop" third0
make_fs ext4 "$loop"
losetup -d "$loop"
truncate -s 32M /snapshot/other
loop2=$(losetup -f --show /snapshot/other)
must "the same loop device again" "$loop" "$loop2"
make_fs ext4 "$loop2"
random 8 "$loop2"
losetup -d "$loop2"
mount -o loop $image /mnt || not_ok "mount -o loop"
bdsnap-testtool work /mnt/work 1 1 || not_ok "load"
umount /mnt
is "a loop device that was let go at once" "raw mount" "$(kinds $image)"
is "both whole" "closed closed" "$(states $image)"
is "nothing in between" "none none" "$(gaps $image)"
restored "an-image-let-go" $image "$(first $image)" third0

# The same one, that is let go and shows it again, before anybody has looked how the session ended.
image=/snapshot/again
truncate -s 32M $image
mkfs.ext4 -q -F $image
activate $image
loop=$(losetup -f --show $image)
bdsnap settle
copy "$loop" again0
dd if=/dev/urandom of="$loop" bs=4k seek=5000 count=1 oflag=direct conv=notrunc status=none
losetup -d "$loop"
loop2=$(losetup -f --show $image)
must "the same loop device once more" "$loop" "$loop2"
mount "$loop2" /mnt || not_ok "mount"
dd if=/dev/urandom of=/mnt/file bs=64k count=4 status=none
umount /mnt
losetup -d "$loop2"
is "a loop device that shows it again at once" "raw mount" "$(kinds $image)"
is "both whole, again" "closed closed" "$(states $image)"
is "nothing in between, again" "none none" "$(gaps $image)"
restored "an-image-again" $image "$(first $image)" again0

# The loop device shows another part of its file while it is mounted.
image=/snapshot/fourth
truncate -s 32M $image
activate $image
loop=$(losetup -f --show $image)
bdsnap settle
make_fs ext4 "$loop"
mount "$loop" /mnt || not_ok "mount"
random 1 /mnt/file
sync
is "its offset changes" 0 "$(bdsnap-testtool loop-offset "$loop" 4096)"
umount /mnt || not_ok "umount"
sleep 1
is "an image that moved: its session is broken" "broken 116" "$(last state $image) $(last errno $image)"
losetup -d "$loop"

# ---- Ends of a raw session ----

device=/dev/vdg
activate $device
dd if=/dev/urandom of=$device bs=4k seek=9 count=3 conv=notrunc,fsync status=none
try rmmod bdsnap
is "no unloading during it" 1 $code
deactivate $device
is "deactivation ends it" closed "$(states $device)"
dd if=/dev/urandom of=$device bs=4k seek=9 count=3 conv=notrunc,fsync status=none
is "and nothing is recorded after it" raw "$(kinds $device)"

# ---- No store, no raw session: said, and the writes go on ----

device=/dev/vdh
activate $device
dd if=/dev/urandom of=$device bs=4k seek=9 count=3 conv=notrunc,fsync status=none
settle
mv /snapshot/.bdsnap-store /snapshot/hidden
dd if=/dev/zero of=$device bs=4k seek=9 count=3 conv=notrunc,fsync status=none || not_ok "a write without a store"
is "it says so" broken "$(status devices.0.state $device)"
settle
mv /snapshot/hidden /snapshot/.bdsnap-store
sleep 1
dd if=/dev/urandom of=$device bs=4k seek=19 count=3 conv=notrunc,fsync status=none
settle
is "the next session knows" "none written" "$(gaps $device)"

# ---- The end by silence ----

for name in $(bdsnap status --json | jq -r '.devices[].device'); do deactivate "$name"; done
rmmod bdsnap || not_ok "rmmod"
load raw_idle_s=1
activate /dev/vdg
dd if=/dev/urandom of=/dev/vdg bs=4k seek=9 count=3 conv=notrunc,fsync status=none
is "a raw session runs after a write" true "$(status devices.0.raw)"
for ((i = 0; i < 100; i++)); do
	[ "$(status devices.0.raw)" = true ] || break
	sleep 0.2
done
is "silence ends it" "false closed" "$(status devices.0.raw) $(status devices.0.state)"

# ---- The store must not lie on what it protects, however deep ----

loop=$(losetup -f --show /snapshot/other)
mkfs.ext4 -q -F "$loop"
dmsetup create low --table "0 $(blockdev --getsz "$loop") linear $loop 0"
mkdir /store2
mount /dev/mapper/low /store2
snapshot=$(findmnt -no SOURCE /snapshot)
try bdsnap activate "$snapshot" --password-file "$password"
is "the store's own device: refused" 1 $code
settle
for name in $(bdsnap status --json | jq -r '.devices[].device'); do deactivate "$name"; done
rmmod bdsnap || not_ok "rmmod"
bdsnap init --store /store2 || not_ok "init"
modprobe --ignore-install bdsnap
/usr/libexec/bdsnap/bdsnap-handover --store /store2 || not_ok "hand-over"
for below in /dev/mapper/low "$loop" /snapshot/other "$snapshot"; do
	try activate "$below"
	is "a store above ${below##*/}: refused" 1 $code
done
umount /store2
dmsetup remove low
losetup -d "$loop"
complete
