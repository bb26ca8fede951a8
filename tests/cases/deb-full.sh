#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 7200
#
# The Debian packages where things are not as they should be: a session that is cut, no password, a
# kernel that takes signed modules only, kernels that the package doesn't know, backports preferred,
# another DKMS module, an upgrade during a session, a downgrade.

set -euo pipefail
. "$(dirname "$0")/../lib.sh"
. "$top/tests/deb/lib.sh"

system=$dir/system
make_repository
# What an earlier run has made when its source came
[ -z "$KNOWN_NOT" ] || rm -rf "$CACHE/deb-kbuild/$KNOWN_NOT"
mkdir -p "$share/repo2"
(
	[ -z "${BDSNAP_DEBS2:-}" ] || exec cp -r "$BDSNAP_DEBS2/." "$share/repo2/"
	exec "$top/scripts/build-deb" --version 0.1.1 --out "$share/repo2"
) >&2
cp "$top/debian/tests/main-job" "$share/"

# ---- In the file system: what apt and DKMS make of it ----

planned() {
	in_system "$system" "$repository:/mnt/repo" -- sh -c '
		echo "deb [trusted=yes] file:/mnt/repo ./" >/etc/apt/sources.list.d/bdsnap.list
		printf "%s\n" "Package: *" "Pin: release n=trixie-backports" "Pin-Priority: 500" >/etc/apt/preferences.d/backports
		apt-get -q -o Acquire::Languages=none update >&2
		apt-get -s -o APT::Install-Recommends=true "$@" 2>&1
		rm /etc/apt/preferences.d/*' - "$@"
}
has() { if grep -qE "$2" <<<"$3"; then ok "$1"; else not_ok "$1: no '$2' in: $3"; fi; }
has "with backports preferred, a wrong compiler is refused" 'Depends: rustc \(< 1\.86' "$(planned install bdsnap-dkms)"
in_system "$system" "$repository:/mnt/repo" -- cp /mnt/repo/bdsnap.pref /etc/apt/preferences.d/
text=$(planned install -t trixie-backports bdsnap linux-image-amd64 linux-headers-amd64)
has "with bdsnap.pref, one command installs all, even from backports alone" '^Inst bdsnap-dkms ' "$text"
has "with the right compiler" '^Inst rustc .*1\.85' "$text"
has "and the newest kernel" '^Inst linux-image-7' "$text"
# Another DKMS module; Debian's own do not build for kernels so new.
# shellcheck disable=SC2016
in_system "$system" -- sh -euc '
	mkdir /usr/src/hello-1.0
	cd /usr/src/hello-1.0
	printf "%s\n" PACKAGE_NAME=hello PACKAGE_VERSION=1.0 "BUILT_MODULE_NAME[0]=hello" "DEST_MODULE_LOCATION[0]=/updates/dkms" AUTOINSTALL=yes >dkms.conf
	echo "obj-m := hello.o" >Makefile
	printf "%s\n" "#include <linux/module.h>" "MODULE_DESCRIPTION(\"another module\");" "MODULE_LICENSE(\"GPL\");" >hello.c'
apt "$system" install bdsnap || { not_ok "apt install bdsnap"; exit 1; }
in_system "$system" -- dkms install hello/1.0 -k "$OLD_KVER" >&2 || not_ok "another DKMS module, beside it"
answers "both modules are built" 'hello.*bdsnap|bdsnap.*hello' "dkms status -k $OLD_KVER | grep installed | paste -sd ' '"

if [ -n "$KNOWN_NOT" ]; then
	source=linux-source-$(series_of "$KNOWN_NOT") version=$(kernel_version "$KNOWN_NOT")
	apt "$system" install "linux-image-$KNOWN_NOT=$version" "linux-headers-$KNOWN_NOT=$version" || not_ok "a kernel's installation never fails"
	said "a kernel that the package doesn't know is skipped, and why is said" "kernel $KNOWN_NOT gets no module: .*install $source=$version"
	apt "$system" install "$source=$version" || not_ok "the kernel source's installation"
	said "when its source comes, the module is built" "kernel $KNOWN_NOT has the module"
	answers "and the other one was all along" "hello.*installed" "dkms status -m hello -k $KNOWN_NOT"
	apt "$system" purge "linux-image-$KNOWN_NOT" "linux-headers-$KNOWN_NOT" "$source" || not_ok "a purge"
else
	skip "a kernel that the package doesn't know: trixie-backports has none"
fi

# ---- Booted ----

# shellcheck disable=SC2016
in_system "$system" -- sh -euc '
	echo "correct horse" | bdsnap passwd --password-stdin
	echo "/dev/disk/by-uuid/$1" >/etc/bdsnap/devices
	mkdir /snapshot /data
	printf "%s\n" "UUID=$1 /data ext4 defaults 0 2" "LABEL=snapshot /snapshot ext4 defaults 0 2" >/etc/fstab' - "$DATA_UUID"
make_bootable "$system"
disk data 96M
mke2fs -q -t ext4 -U "$DATA_UUID" "$dir/data"
disk store 512M
mke2fs -q -t ext4 -L snapshot "$dir/store"

booted "from kernel to kernel by kexec" "$OLD_KVER" 1500 kexec.sh
booted "a session is cut" "$OLD_KVER" 900 cut.sh
booted "the boot after it" "$OLD_KVER" 900 after-cut.sh
booted "an upgrade of the packages in a session" "$OLD_KVER" 2400 package-upgrade.sh
APPEND=module.sig_enforce=1 booted "a kernel that enforces signatures" "$OLD_KVER" 900 unsigned.sh
in_system "$system" -- rm /etc/bdsnap/secret
booted "a boot without a password" "$OLD_KVER" 900 no-secret.sh

# ---- Back to the older version ----

# shellcheck disable=SC2016
older=$(sed -n 's/^Version: //p' "$repository/Packages" | head -n 1)
apt "$system" install --allow-downgrades "bdsnap=$older" "bdsnap-dkms=$older" || not_ok "a downgrade"
answers "the older module is built" 'bdsnap/0\.1\.0, .*installed' "dkms status -m bdsnap -k $OLD_KVER"

# ---- Debian's own test of DKMS packages, which their Testsuite field calls ----

# It purges the package, installs it without building, then builds for each kernel whose headers are there.
# shellcheck disable=SC2016
in_system "$system" "$repository:/mnt/repo" -- sh -euc 'cd /tmp; exec /usr/lib/dkms/dkms-autopkgtest "$@"' - bdsnap-dkms \
	>"$dir/autopkgtest" 2>&1 || { tail -n 60 "$dir/autopkgtest" >&2; not_ok "dkms-autopkgtest"; }
summary=$(sed -n '/^I: Summary:/,$p' "$dir/autopkgtest")
has "dkms-autopkgtest: built and installed" "PASS bdsnap/0\.1\.0 ${OLD_KVER//+/\\+}" "$summary"
has "dkms-autopkgtest: a kernel that is too old is skipped, not failed" 'SKIP bdsnap/0\.1\.0 6\.12' "$summary"
exit $failed
