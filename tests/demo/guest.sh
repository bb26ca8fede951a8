#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# guest.sh BEGAN DURABILITY BOLD PLAIN
#
# The part of scripts/demo that runs in the guest, as root. /dev/vda is the disk to protect, /dev/vdb
# takes a copy of it, /host/documents has files. BEGAN is when the host started the guest.

set -euo pipefail

began=$1 durability=$2 bold=$3 plain=$4 step=1

fail() { printf '\n   FAILED: %s\n' "$*"; exit 1; }
took() { printf '   took %s\n' "$(awk -v from="$began" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", to - from }')"; }
# title TEXT: ends a step and begins the next
title() {
	took
	step=$((step + 1))
	printf '\n%s%2d  %s%s\n' "$bold" "$step" "$1" "$plain"
	began=$EPOCHREALTIME
}
# show COMMAND...: shows it and what it says
show() {
	local status=0
	printf '   $ %s\n' "$*"
	"$@" >/tmp/said 2>&1 || status=$?
	sed 's/^/     /' /tmp/said
	[ $status = 0 ] || fail "status $status of: $*"
}
# sums FILE: a checksum of each file on the disk
sums() { (cd /mnt && find . -type f ! -name victim -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >"$1"; }
files() { wc -l <"$1"; }

echo "   Linux $(uname -r), $(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB of memory"

title "Make a disk with files"
show mkfs.ext4 -q -L photos /dev/vda
mount /dev/vda /mnt
touch /mnt/victim       # bdsnap-ransom works only where this is
cp -r /host/documents /mnt/
cp -r /usr/share/zoneinfo /mnt/
mkdir /mnt/photos
for i in {1..24}; do head -c 1M /dev/urandom >"/mnt/photos/summer-$i.jpg"; done
sums /tmp/before
echo "   $(files /tmp/before) files, $(du -sm /mnt | cut -f1) MiB"
umount /mnt

title "Set a password and protect the disk"
# The user would type it; bdsnap takes no password from a command line.
printf 'correct horse\n' >/tmp/password
show bdsnap passwd --password-file /tmp/password
show modprobe bdsnap
show bdsnap activate /dev/vda --durability "$durability" --password-file /tmp/password

title "Copy the whole disk to a second one, to have something to compare with"
show dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync status=none
took_copy=$(sha256sum </dev/vdb)
echo "   SHA-256 ${took_copy%% *}"

title "Mount it: from here on bdsnap keeps what is overwritten"
show mount /dev/vda /mnt
show bdsnap status /dev/vda

title "Ransomware strikes: it overwrites every file in place"
show bdsnap-ransom /mnt
sums /tmp/after
same=$(LC_ALL=C sort /tmp/before >/tmp/b; LC_ALL=C sort /tmp/after | comm -12 /tmp/b - | wc -l)
echo "   $same of $(files /tmp/before) files are still what they were"
[ "$same" = 0 ] || fail "the ransomware has overlooked files"
show ls /mnt/photos/summer-1.jpg.locked /mnt/READ-ME-NOW.txt

title "Unmount it: the session ends"
show umount /mnt
now=$(sha256sum </dev/vda)
echo "   SHA-256 ${now%% *}"
[ "$now" != "$took_copy" ] || fail "the disk has not changed"
show bdsnap list
show bdsnap verify --all

title "Restore the disk to what it was when it was mounted"
show bdsnap-restore /dev/vda latest --yes

title "Look at the files"
show mount -o ro,noload /dev/vda /mnt
sums /tmp/restored
cmp /tmp/before /tmp/restored || fail "the files are not what they were"
echo "   all $(files /tmp/before) files are what they were"
show umount /mnt
show bdsnap list -o name,kind,state,saved_bytes
took
