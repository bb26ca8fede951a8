#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# mount-many.sh N: N registrations, of which two are there: /dev/vda and /dev/vdb. /dev/vdc is not
# registered.

. "$(dirname "$0")/lib.sh"
n=$1
make_fs ext4 /dev/vda
make_fs ext4 /dev/vdc
sync
# milliseconds COMMAND...
milliseconds() {
	local began=${EPOCHREALTIME/./}
	"$@" || not_ok "$*"
	ms=$(((${EPOCHREALTIME/./} - began) / 1000))
}
mounts() {
	for _ in 1 2 3 4 5; do mount "$1" /mnt && umount /mnt; done
}
free_kib() { awk '/^MemAvailable:/ { print $2 }' /proc/meminfo; }

milliseconds mounts /dev/vdc
alone=$ms
mkdir -p /etc/bdsnap
bdsnap passwd --password-file "$password"
{
	for ((i = 0; i < n; i += 3)); do
		echo "/dev/disk/by-uuid/not-there-$i"
		echo "/dev/mapper/absent-$i"
		echo "/srv/images/image-$i"
	done
	echo /dev/vda
} >/etc/bdsnap/devices
chmod 600 /etc/bdsnap/devices
before=$(free_kib)
milliseconds modprobe bdsnap
took=$ms
atleast "registered" $n "$(status 'devices.#')"
atmost "the time, in ms, each: less than 50" $((n * 50)) $took
after=$(free_kib)
echo "$n registrations: $took ms, $((before - after)) KiB; five mounts without: $alone ms"
atmost "the memory, in KiB, each: less than 24, with the module itself" $((24 * n)) $((before - after))

milliseconds mounts /dev/vdc
echo "five mounts of a device that is not registered: $ms ms"
atmost "a mount of a device that is not registered, in ms" $((alone + 5 * 1000)) $ms
milliseconds bdsnap settle
echo "settle: $ms ms"
atmost "a look at all the names, in ms" 15000 $ms

copy /dev/vda many.0
milliseconds mount /dev/vda /mnt
echo "mount: $ms ms"
load_on /mnt 1 1
milliseconds umount /mnt
echo "unmount: $ms ms"
copy /dev/vda many.1
is "one of many: its session" "mount closed" "$(last kind /dev/vda) $(last state /dev/vda)"
try bdsnap-restore /dev/vda latest --yes
is "one of many: restore" 0 $code
copy /dev/vda many.2
milliseconds rmmod bdsnap
echo "rmmod: $ms ms"
complete
