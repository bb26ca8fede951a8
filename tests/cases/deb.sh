#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 3600
#
# The Debian packages: built, installed with apt in a Debian 13 with a backports kernel, armed at boot,
# used, taken over a kernel upgrade, and purged.

set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$top/tests/deb/lib.sh"

DATA_UUID=11111111-2222-4333-8444-555555555555
system=$dir/system
make_repository

# ---- Installed ----

apt "$system" install bdsnap || { not_ok "apt install bdsnap"; exit 1; }
ok "apt install bdsnap"
answers "the module is built for the kernel from backports" 'updates/dkms/bdsnap.ko.xz$' "modinfo -k $OLD_KVER -n bdsnap"
answers "it is signed" . "modinfo -k $OLD_KVER -F sig_id bdsnap"
is "the older kernel is skipped, and why is said" 1 "$(grep -c '6.12.*gets no module: it is older than 7.2' "$dir/apt")"
answers "the compiler is the release's own" '1\.85' 'rustc --version'

# ---- Set up as a user would, and booted ----

# shellcheck disable=SC2016
in_system "$system" -- sh -euc '
	echo "correct horse" | bdsnap passwd --password-stdin
	printf "%s\n" "/dev/disk/by-uuid/$1" /dev/disk/by-id/virtio-plug >/etc/bdsnap/devices
	sed -i "s/^#min_free_mib.*/min_free_mib = 17/" /etc/bdsnap/bdsnap.toml
	mkdir /snapshot /data /plug
	printf "%s\n" "UUID=$1 /data ext4 defaults 0 2" "LABEL=snapshot /snapshot ext4 defaults 0 2" \
		"/dev/disk/by-id/virtio-plug /plug ext4 noauto,nofail,x-systemd.automount 0 2" >/etc/fstab' - "$DATA_UUID"
make_bootable "$system"
mkdir "$dir/files"
for n in $(seq 40); do head -c 200000 /dev/urandom >"$dir/files/$n"; done
disk data 96M
mke2fs -q -t ext4 -U "$DATA_UUID" -d "$dir/files" "$dir/data"
disk store 512M
mke2fs -q -t ext4 -L snapshot "$dir/store"
disk plug 32M
mke2fs -q -t ext4 "$dir/plug"
disk lvm 64M
cp --sparse=always "$dir/data" "$dir/before"

booted "the boot with $OLD_KVER" "$OLD_KVER" 1200 armed.sh
unequal "the device was written" "$dir/before" "$dir/data"

# ---- A newer kernel ----

apt "$system" install "linux-image-$NEW_KVER" "linux-headers-$NEW_KVER" || not_ok "a new kernel's installation"
is "the module is built when a new kernel is installed" 1 "$(grep -c "kernel $NEW_KVER has the module" "$dir/apt")"
booted "the boot with $NEW_KVER" "$NEW_KVER" 1200 upgraded.sh
equal "restored over the upgrade: byte for byte what it was before the first boot" "$dir/before" "$dir/data"

# ---- Purged ----

apt "$system" purge "linux-image-$OLD_KVER" "linux-headers-$OLD_KVER" "linux-binary-$OLD_KVER" "linux-modules-$OLD_KVER" || not_ok "purging a kernel"
is "a removed kernel's Rust parts are gone" "$NEW_KVER" "$(in_system "$system" -- ls /var/cache/bdsnap/kbuild)"
in_system "$system" -- touch /snapshot/.bdsnap-store
apt "$system" purge bdsnap bdsnap-dkms || not_ok "apt purge"
is "purged, only the store is left" /snapshot/.bdsnap-store "$(in_system "$system" -- find / -xdev \
	\( -path /proc -o -path /var/lib/apt -o -path /var/log -o -path /etc/apt \) -prune -o -iname '*bdsnap*' -print)"
exit $failed
