#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dev-loop.sh: image files, in all the ways in which a loop device can show one. /dev/vda: a file system
# for the images.

. "$(dirname "$0")/lib.sh"
load
make_fs ext4 /dev/vda
images=$work/images
mkdir "$images"
mount /dev/vda "$images"
# fresh NAME [MIB]: sets `image`
fresh() {
	image=$images/$1
	truncate -s "${2:-48}M" "$image"
}
# image_round NAME FS [LOSETUP-OPTION...]: a session on $image, through a loop device, and back
image_round() {
	local name=$1 fs=$2 loop
	shift 2
	sync
	cp --sparse=always "$image" "/host/$name.0"
	activate "$image" || not_ok "$name: activate"
	loop=$(losetup --show -f "$@" "$image") || not_ok "$name: losetup"
	mount -t "$fs" "$loop" /mnt || not_ok "$name: mount"
	is "$name: a session of the image" recording "$(status devices.0.state "$image")"
	load_on /mnt 1 1
	umount /mnt
	losetup -d "$loop"
	cp --sparse=always "$image" "/host/$name.1"
	is "$name: its session" "mount closed" "$(last kind "$image") $(last state "$image")"
	try bdsnap-restore "$image" latest --yes
	is "$name: restore" 0 $code
	cp --sparse=always "$image" "/host/$name.2"
	deactivate "$image"
}
# made FS DEVICE... on a loop device of its own
mkfs_in() {
	local loop fs=$1
	shift
	loop=$(losetup --show -f "$@" "$image") || not_ok "losetup"
	make_fs "$fs" "$loop"
	losetup -d "$loop"
}

fresh image
make_fs ext4 "$image"
image_round loop ext4
fresh image-xfs 300
make_fs xfs "$image"
image_round loop-xfs xfs
fresh large-blocks
mkfs_in ext4 --sector-size 4096
image_round loop-4k ext4 --sector-size 4096

# A part of a file
fresh part 64
random 64 "$image"
mkfs_in ext4 --offset $((3 << 20)) --sizelimit $((40 << 20))
image_round loop-part ext4 --offset $((3 << 20)) --sizelimit $((40 << 20))
is "part: where it begins" "$((3 << 20)) $((40 << 20))" \
	"$(jq -r '"\(.loop_offset) \(.loop_sizelimit)"' /snapshot/part_*/meta.json | tail -n 1)"

# Partitions
fresh disk 64
printf 'label: gpt\n2048,40000\n,\n' | sfdisk -q "$image"
loop=$(losetup --show -fP "$image")
make_fs ext4 "${loop}p1"
make_fs ext4 "${loop}p2"
losetup -d "$loop"
sync
cp "$image" /host/loop-P.0
activate "$image"
loop=$(losetup --show -fP "$image")
mkdir "$work/1" "$work/2"
mount "${loop}p1" "$work/1"
mount "${loop}p2" "$work/2"
is "-P: one session for both partitions" 1 "$(status module.sessions)"
load_on "$work/1" 1 1
umount "$work/1"
random 1 "$work/2/file"
umount "$work/2"
losetup -d "$loop"
cp "$image" /host/loop-P.1
is "-P: its session" "mount closed" "$(last kind "$image") $(last state "$image")"
try bdsnap-restore "$image" latest --yes
is "-P: restore" 0 $code
cp "$image" /host/loop-P.2
deactivate "$image"

# Beside the store, on its file system
image=/snapshot/beside
truncate -s 48M $image
make_fs ext4 $image
image_round loop-beside ext4

# ---- Names ----

# By a link to its folder
fresh linked
make_fs ext4 "$image"
ln -s "$images" "$work/link"
image=$work/link/linked
image_round loop-link ext4

# By another mount of its folder
fresh bound
make_fs ext4 "$image"
mkdir "$work/bind"
mount --bind "$images" "$work/bind"
cp "$image" /host/loop-bind.0
activate "$image"
loop=$(losetup --show -f "$work/bind/bound")
mount "$loop" /mnt
is "by another mount: a session of the image" recording "$(status devices.0.state "$image")"
load_on /mnt 1 1
umount /mnt
losetup -d "$loop"
cp "$image" /host/loop-bind.1
try bdsnap-restore "$image" latest --yes
is "by another mount: restore" 0 $code
cp "$image" /host/loop-bind.2
deactivate "$image"

# Removed while a loop device shows it, and another file of that name
fresh removed
make_fs ext4 "$image"
activate "$image"
loop=$(losetup --show -f "$image")
rm "$image"
fresh removed
make_fs ext4 "$image"
sync
cp "$image" "$work/removed"
mount "$loop" /mnt || not_ok "removed: mount"
random 1 /mnt/file
is "removed: the other file of that name has no session" 0 "$(status module.sessions)"
umount /mnt
losetup -d "$loop"
is "removed: nor has the store" 0 "$(list 'sessions.#' "$image")"
deactivate "$image"

# ---- Two at once ----

fresh two 64
mkfs_in ext4 --offset 0 --sizelimit $((24 << 20))
mkfs_in ext4 --offset $((32 << 20)) --sizelimit $((24 << 20))
activate "$image"
one=$(losetup --show -f --sizelimit $((24 << 20)) "$image")
two=$(losetup --show -f --offset $((32 << 20)) --sizelimit $((24 << 20)) "$image")
mount "$one" "$work/1"
mount "$two" "$work/2" || not_ok "two: the second mount"
random 1 "$work/1/file"
random 1 "$work/2/file"
umount "$work/2" "$work/1"
losetup -d "$one" "$two"
is "two loop devices on one image: the session can't be vouched for" tainted "$(last state "$image")"
try bdsnap-restore "$image" latest --yes
is "two loop devices on one image: refused" 5 $code
deactivate "$image"

try bdsnap verify --all
complete
