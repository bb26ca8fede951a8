#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 5400
#
# The Debian packages on Debian 14: built with its own tools, installed, armed at boot, used, and purged.

set -euo pipefail
DEB_SUITE=forky
. "$(dirname "$0")/../lib.sh"
. "$top/tests/deb/lib.sh"

system=$dir/system
make_repository
apt "$system" install bdsnap || { not_ok "apt install bdsnap"; exit 1; }
ok "apt install bdsnap"
answers "the module is built for the release's kernel" 'updates/dkms/bdsnap.ko.xz$' "modinfo -k $OLD_KVER -n bdsnap"
compiler=$(private_apt forky apt-cache madison rustc | awk '{ sub(/[+-].*/, "", $3) } NR == 1 { print $3 }')
answers "the compiler is the release's own" "^rustc ${compiler//./[.]} " 'rustc --version'
set_up
booted "the boot with $OLD_KVER" "$OLD_KVER" 1800 armed.sh
unequal "the device was written" "$dir/before" "$dir/data"
booted "the next boot" "$OLD_KVER" 1800 again.sh
equal "restored after a restart: byte for byte what it was before the first boot" "$dir/before" "$dir/data"
in_system "$system" -- touch /snapshot/.bdsnap-store
apt "$system" purge bdsnap bdsnap-dkms || not_ok "apt purge"
nothing_left
exit $failed
