#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# For each sabotage of the module: a session on /dev/vda (then vdb) and a restore. The statuses of
# `verify` and `restore` go to /host/SABOTAGE.*, the host says whether they fit the disk.

. "$(dirname "$0")/lib.sh"
letters=abc n=0
for sabotage in 0 1 2; do
	device=/dev/vd${letters:n++:1}
	make_fs ext4 $device
	sync
	copy $device $sabotage.before
	load sabotage=$sabotage
	activate $device
	mount $device /mnt
	load_on /mnt 1 1
	umount /mnt
	copy $device $sabotage.after
	must "sabotage=$sabotage: it is the device's own session, or none" "" "$(column device $device | tr ' ' '\n' | grep -v "^$device\$")"
	try bdsnap verify --all
	echo $code >/host/$sabotage.verify
	try bdsnap-restore $device latest --yes
	echo $code >/host/$sabotage.restore
	rmmod bdsnap || not_ok "rmmod"
	rm -rf /snapshot/vd*
done
complete
