#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: first
# timeout: 2400
#
# The Debian packages: built, installed with apt in a Debian 13 with a backports kernel, armed at boot,
# used, taken over a kernel upgrade, and purged.

set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$top/tests/deb/lib.sh"

system=$dir/system
make_repository

# ---- Installed ----

apt "$system" install bdsnap || { not_ok "apt install bdsnap"; exit 1; }
ok "apt install bdsnap"
answers "the module is built for the kernel from backports" 'updates/dkms/bdsnap.ko.xz$' "modinfo -k $OLD_KVER -n bdsnap"
answers "it is signed" . "modinfo -k $OLD_KVER -F sig_id bdsnap"
said "the older kernel is skipped, and why is said" '6.12.*gets no module: it is older than 7.2'
answers "the compiler is the release's own" '1\.85' 'rustc --version'

# ---- Set up as a user would, and booted ----

set_up
booted "the boot with $OLD_KVER" "$OLD_KVER" 1800 armed.sh
unequal "the device was written" "$dir/before" "$dir/data"

# ---- A newer kernel ----

if [ -n "$NEW_KVER" ]; then
	apt "$system" install "linux-image-$NEW_KVER" "linux-headers-$NEW_KVER" || not_ok "a new kernel's installation"
	said "the module is built when a new kernel is installed" "kernel $NEW_KVER has the module"
	booted "the boot with $NEW_KVER" "$NEW_KVER" 1800 upgraded.sh
	equal "restored over the upgrade: byte for byte what it was before the first boot" "$dir/before" "$dir/data"
else
	skip "a newer kernel: trixie-backports has one series only"
fi

# ---- Purged ----

if [ -n "$NEW_KVER" ]; then
	apt "$system" purge "linux-image-$OLD_KVER" "linux-headers-$OLD_KVER" "linux-binary-$OLD_KVER" "linux-modules-$OLD_KVER" || not_ok "purging a kernel"
	is "a removed kernel's Rust parts are gone" "$NEW_KVER" "$(in_system "$system" -- ls /var/cache/bdsnap/kbuild)"
fi
in_system "$system" -- touch /snapshot/.bdsnap-store
apt "$system" purge bdsnap bdsnap-dkms || not_ok "apt purge"
nothing_left
exit $failed
