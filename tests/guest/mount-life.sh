#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What mounts go through: failed ones, second ones, binds, lazy unmounts, namespaces. /dev/vda to vde.

. "$(dirname "$0")/lib.sh"
load
sessions() { status module.sessions; }
mkdir "$work/1" "$work/2" "$work/3"

# ---- Failed mounts leave nothing ----

device=/dev/vda
make_fs ext4 $device
sync
copy $device failed.0
activate $device
for options in "-t xfs" "-t vfat" "-t btrfs" "-t ext4 -o nonsense" "-t ext4 -o journal_path=/nowhere" "-t minix -o ro"; do
	# shellcheck disable=SC2086
	mount $options $device /mnt && not_ok "mount $options works"
	must "mount $options: no session" 0 "$(sessions)"
done
is "failed mounts: nothing in the store" 0 "$(list 'sessions.#' $device)"
# Another one has it
exec 5<>$device
flock 5
mount $device /mnt || not_ok "an open device: mount"
umount /mnt
exec 5>&-
dmsetup create holder --table "0 $(blockdev --getsz $device) linear $device 0"
mount $device /mnt && not_ok "a device that dm holds can be mounted"
is "a device that dm holds: no session" 0 "$(sessions)"
dmsetup remove holder
try bdsnap-restore $device latest --yes
is "failed mounts: restore" 0 $code
copy $device failed.2

# A mount that replays the journal and then fails: what it wrote is saved
make_fs ext4 /dev/vdb
mount -o noatime /dev/vdb /mnt
for i in $(seq 60); do echo "$i" >"/mnt/$i"; done
umount /mnt
mount -o noatime /dev/vdb /mnt
for i in $(seq 40 60); do echo "again $i" >>"/mnt/$i"; done
sync -f /mnt/50 # into the journal, not to its place
dd if=/dev/vdb of=/dev/vdc bs=1M iflag=direct oflag=direct status=none
umount /mnt
wipefs -aq /dev/vdb
debugfs -w -R 'clri <2>' /dev/vdc 2>/dev/null
sync
device=/dev/vdc
is "a journal to replay" 1 "$(dumpe2fs -h $device 2>/dev/null | grep -c needs_recovery)"
activate $device
copy $device replayed.0
mount $device /mnt && not_ok "a file system without root can be mounted"
copy $device replayed.1
is "replayed, then failed: the session" "mount closed" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "replayed, then failed: restore" 0 $code
copy $device replayed.2
deactivate $device

# ---- One session, however often it is mounted ----

device=/dev/vdd
make_fs ext4 $device
sync
copy $device often.0
activate $device
mount $device "$work/1"
mount $device "$work/2"
mount --bind "$work/1" "$work/3"
is "mounted twice and bound: one session" 1 "$(sessions)"
random 1 "$work/1/one"
umount "$work/1"
random 1 "$work/2/two"
umount "$work/2"
is "one mount is left" 1 "$(sessions)"
random 1 "$work/3/three"
# A file is open when the last mount goes lazily.
exec 5>"$work/3/four"
umount -l "$work/3"
is "unmounted lazily, with an open file: goes on" 1 "$(sessions)"
dd if=/dev/urandom bs=1M count=1 status=none >&5
exec 5>&-
for _ in $(seq 100); do [ "$(sessions)" = 0 ] && break; sleep 0.1; done
is "the file is closed: it is over" 0 "$(sessions)"
copy $device often.1
is "often: one in the store" "mount closed" "$(column kind $device) $(column state $device)"
try bdsnap-restore $device latest --yes
is "often: restore" 0 $code
copy $device often.2

# ---- Remounts ----

device=/dev/vde
make_fs xfs $device
sync
copy $device remounted.0
activate $device
mount -o ro $device /mnt
mount -o remount,rw /mnt
load_on /mnt 1 1
mount -o remount,ro /mnt
is "read-only again: goes on" 1 "$(sessions)"
mount -o remount,rw /mnt
load_on /mnt 2 1
umount /mnt
copy $device remounted.1
is "remounted: one session" "mount closed" "$(column kind $device) $(column state $device)"
try bdsnap-restore $device latest --yes
is "remounted: restore" 0 $code
copy $device remounted.2
deactivate $device

device=/dev/vdb
make_fs ext4 $device
sync

# ---- Namespaces ----

copy $device contained.0
activate $device
mount $device /mnt
mkfifo "$work/go" "$work/ready"
# Held open, so that nothing is lost between two reads
exec 4<>"$work/ready"
# A container of its own with all namespaces, the device's file system its only folder
unshare --mount --pid --ipc --uts --net --user --map-root-user --propagation private --fork sh -c "
	cd /mnt && echo ready >$work/ready && read -r _ <$work/go
	dd if=/dev/urandom of=contained bs=100000 count=10 conv=fsync status=none && echo written >$work/ready
	bdsnap activate /dev/vda --password-file $password && echo allowed >$work/ready || echo refused >$work/ready
	read -r _ <$work/go" &
container=$!
read -r _ <&4
chmod 777 /mnt
umount /mnt
is "another namespace has it: goes on" 1 "$(sessions)"
echo >"$work/go"
read -r answer <&4
is "a container writes" written "$answer"
read -r answer <&4
is "a container can't activate" refused "$answer"
echo >"$work/go"
wait $container
for _ in $(seq 100); do [ "$(sessions)" = 0 ] && break; sleep 0.1; done
is "with the namespace it ends" 0 "$(sessions)"
copy $device contained.1
is "contained: the session" "mount closed" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "contained: restore" 0 $code
copy $device contained.2
# Mounted inside one
mount_in() { unshare --mount --propagation private sh -c "mount $1 /mnt && dd if=/dev/urandom of=/mnt/inside bs=100000 count=3 status=none"; }
copy $device inside.0
mount_in $device || not_ok "a mount in a namespace"
for _ in $(seq 100); do [ "$(sessions)" = 0 ] && break; sleep 0.1; done
copy $device inside.1
is "inside: the session" "mount closed" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "inside: restore" 0 $code
copy $device inside.2
deactivate $device

# ---- Activation and deactivation meanwhile ----

copy $device late.0
mount $device /mnt
try activate $device
is "mounted: can be registered" 0 $code
is "mounted: it is said" 1 "$(grep -c 'mounted' <<<"$out")"
is "mounted: not protected" true "$(status devices.0.unprotected $device)"
random 1 /mnt/late
mount $device "$work/1" # no claim: the kernel has it already
umount "$work/1"
is "mounted: no session" 0 "$(sessions)"
umount /mnt
copy $device late.0
mount $device /mnt
is "mounted anew: protected" "recording false" "$(status devices.0.state $device) $(status devices.0.unprotected $device)"
deactivate $device
random 1 /mnt/later
activate $device
random 1 /mnt/latest
umount /mnt
is "deactivated and activated in a session: still registered" 1 "$(status 'devices.#' $device)"
copy $device late.1
is "late: the session" "mount closed" "$(last kind $device) $(last state $device)"
try bdsnap-restore $device latest --yes
is "late: restore" 0 $code
copy $device late.2
try bdsnap verify --all
is "verify" 0 $code
complete
