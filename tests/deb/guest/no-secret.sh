# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A boot without a password.

# shellcheck source=lib.sh
. /host/lib.sh

is "the module is loaded" yes "$(test -e /dev/bdsnap && echo yes)"
is "the boot is not held up" "" "$(failed_units)"
has "the unit says what is missing" 'no password is set' "$(systemctl status bdsnap.service 2>&1)"
has "so does the kernel log" 'no password is set' "$(dmesg)"
has "and the status" 'NOT SET' "$(bdsnap status)"
has "control is refused, and why" "set one with 'bdsnap passwd'" "$(echo x | bdsnap activate /dev/vdb --password-stdin 2>&1)"
records "what is listed is protected all the same" /data

# ---- A password is set, and the module loaded again ----

echo "new" | bdsnap passwd --password-stdin
has "not while a session runs" 'sessions are recording' "$(bdsnap reload 2>&1)"
umount /data
bdsnap reload
is "the module is loaded again" 0 $?
has "with the password" 'password +set' "$(bdsnap status)"
mount /data
records "and the device is protected again" /data
