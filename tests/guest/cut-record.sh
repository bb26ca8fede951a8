#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# cut-record.sh LAYOUT WHAT [FS [STORE]]: on /dev/vda, whose writes the host logs, makes partitions for an origin
# with file system FS, a store on file system STORE and marks (at LAYOUT, see bdsnap-cut), and then does
# what will be cut. WHAT:
#   strict, async  a session. The origin at its start goes to /host/start, the names of the first
#                  session and of this one to /host/names
#   restore        a restore. /host/start is what the origin is to become, /host/now what it was
#   prune          a pruning of five sessions, of which the first, third and last remain. /host/state0 to
#                  state4 are their starts, /host/names their names
# What is to be cut lies between the marks `start` and `end`; between `large` and `ended` these are large writes.

. "$(dirname "$0")/lib.sh"
IFS=, read -r origin store marks end <<<"$1"
what=$2 fs=${3:-ext4} store_fs=${4:-ext4}

mark() {
	sync
	bdsnap-cut mark /dev/vda3 "$1" || not_ok "mark $1"
}
mount_origin() { mount /dev/vda1 /mnt || not_ok "mount"; }
# session SEED
session() {
	mount_origin
	bdsnap-testtool work /mnt/work "$1" 1 || not_ok "load"
	umount /mnt
}
# burst: for some seconds, all kinds of writes over what is there, at the same time
burst() {
	local i jobs=()
	for i in 0 1 2 3 4 5; do
		dd if=/dev/urandom of=/mnt/old bs=16k seek=$((i * 61)) count=20 conv=notrunc oflag=direct status=none
		dd if=/dev/urandom of=/mnt/old bs=3000 seek=$((i * 331 + 200)) count=9 conv=notrunc,fsync status=none
		sleep 0.2
	done & jobs+=($!)
	for i in 0 1 2 3 4 5 6 7 8 9; do
		echo "$i $RANDOM" >>/mnt/journal
		sync /mnt/journal
		mv /mnt/journal /mnt/journal$((i % 2))
		cp /mnt/journal$((i % 2)) /mnt/journal
	done & jobs+=($!)
	bdsnap-testtool work /mnt/work 3 1 || not_ok "load"
	wait "${jobs[@]}"
}

sfdisk -q /dev/vda <<-END || die "sfdisk"
	label: gpt
	start=${origin}MiB, size=$((store - origin))MiB
	start=${store}MiB, size=$((marks - store))MiB
	start=${marks}MiB, size=$((end - marks - 1))MiB
END
for ((i = 0; i < 50; i++)); do
	[ ! -b /dev/vda3 ] || break
	sleep 0.1
done
# By this name it is known, whatever disk it will be on.
ln -s vda1 /dev/origin
make_fs "$store_fs" /dev/vda2 || die "mkfs of the store"
mount /dev/vda2 /snapshot || die "no store"
case $fs in
xfs) mkfs.xfs -q -f --unsupported /dev/vda1 ;;
*) make_fs "$fs" /dev/vda1 ;;
esac || die "mkfs"
mount_origin
random 6 /mnt/old
[[ $what != strict && $what != async ]] || random 12 /mnt/long
bdsnap-testtool work /mnt/work 1 1
umount /mnt
sync
load
case $what in
strict | async)
	activate /dev/origin --durability "$what" || not_ok "activate"
	copy /dev/vda1 past
	session 2
	sync
	copy /dev/vda1 start
	mark start
	bdsnap-cut clock /dev/vda3 5 & clock=$!
	mount_origin
	burst
	mark large
	# In large batches, of which one is written while the one before is made durable
	dd if=/dev/urandom of=/mnt/long bs=4M count=3 conv=notrunc oflag=direct status=none
	mark ended
	umount /mnt
	kill $clock
	mark end
	is "the session that is cut" "closed" "$(last state /dev/origin)"
	;;
restore)
	activate /dev/origin || not_ok "activate"
	copy /dev/vda1 start
	mount_origin
	burst
	umount /mnt
	sync
	copy /dev/vda1 now
	mark start
	bdsnap-cut clock /dev/vda3 5 & clock=$!
	try bdsnap-restore /dev/origin latest --yes
	is "the restore that is cut" 0 $code
	kill $clock
	mark end
	;;
prune)
	activate /dev/origin || not_ok "activate"
	for i in 0 1 2 3 4; do
		copy /dev/vda1 state$i
		session "$i"
	done
	read -r s0 _ s2 _ <<<"$(column name /dev/origin)"
	{ bdsnap hold "$s0" a && bdsnap hold "$s2" b; } || not_ok "hold"
	sync
	copy /dev/vda1 now
	mark start
	bdsnap-cut clock /dev/vda3 5 & clock=$!
	column name /dev/origin >/host/names
	try bdsnap-prune --keep-last 1 --min-age 0 --apply
	is "the pruning that is cut" 0 $code
	kill $clock
	mark end
	;;
esac
[ -e /host/names ] || column name /dev/origin >/host/names
complete
