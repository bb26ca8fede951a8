# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The boot after armed.sh, with the same kernel.

# shellcheck source=lib.sh
. /host/lib.sh

is "no unit has failed" "" "$(failed_units)"
records "/data is recorded, with no hand laid on" /data
records "so is a logical volume" /lv
records "so is an image in a loop device" /image
has "the session before was closed by the shutdown" 'mount +closed' "$(bdsnap list /data)"
umount /data
bdsnap-restore "/dev/disk/by-uuid/$DATA_UUID" "$(cat /host/session)" --yes --accept-gap
is "the device is restored" 0 $?
