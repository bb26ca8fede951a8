# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A kernel that takes only modules with a signature that it knows; DKMS's is not enrolled.

# shellcheck source=lib.sh
. /host/lib.sh

is "the kernel refuses the module" no "$(test -e /dev/bdsnap && echo yes || echo no)"
is "only that unit has failed" bdsnap.service "$(failed_units)"
has "the boot went on" ext4 "$(findmnt -n -o FSTYPE /data)"
status=$(bdsnap status 2>&1)
has "the status explains" 'signed with a key that it knows' "$status"
has "and names the cure" 'mokutil --import /var/lib/dkms/mok.pub' "$status"
has "so does the unit" 'mokutil --import' "$(systemctl status -n 50 bdsnap.service 2>&1)"
has "and a reload" 'mokutil --import' "$(bdsnap reload 2>&1)"
