# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The boot into a kernel that came by an upgrade.

# shellcheck source=lib.sh
. /host/lib.sh

is "the new kernel runs" "$KVER" "$(uname -r)"
is "no unit has failed" "" "$(failed_units)"
records "/data is recorded, with no hand laid on" /data
records "so is a logical volume" /lv
records "so is an image in a loop device" /image
has "the session before was closed by the shutdown" 'mount +closed' "$(bdsnap list /data)"
has "the status names kernels without a module, and why" \
	'kernel 6.12.*has no module: it is older than Linux 7.2' "$(bdsnap status)"
is "status --check is content" 0 "$(bdsnap status --check >/dev/null 2>&1; echo $?)"

# ---- Back to before the first boot, over two sessions, a shutdown and another kernel ----

umount /data
bdsnap-restore "/dev/disk/by-uuid/$DATA_UUID" "$(cat /host/session)" --yes --accept-gap
is "the device is restored" 0 $?
