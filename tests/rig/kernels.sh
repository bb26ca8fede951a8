#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: quick
# timeout: 120
#
# Which kernel is meant by a suite, a series, a version, and what becomes of that when the archive moves on? Asks the
# scripts themselves, with lists of a made-up archive.

set -uo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
failed=0
unset BDSNAP_KERNEL BDSNAP_KERNELS
export BDSNAP_CACHE=$temp/cache

# is NAME EXPECTED ACTUAL
is() {
	if [ "$2" = "$3" ]; then
		echo "ok $1"
	else
		echo "not ok $1: expected '$2', got '$3'"
		failed=1
	fi
}
# archive SUITE [KVER=VERSION...]: what it has from now on
archive() {
	local list=$temp/archive/dists/$1/main/binary-amd64 kernel
	shift
	mkdir -p "$list"
	for kernel; do
		printf '%s\n' "Package: linux-headers-${kernel%%=*}" "Version: ${kernel#*=}" Architecture: Maintainer: \
			"Filename: none" "Size: 1" "SHA256: $(printf '%064d' 0)" "Description: headers" '' |
			sed 's/^Architecture:/& amd64/; s/^Maintainer:/& nobody/'
	done >"$list/Packages"
}
# lists: as the scripts read them once an hour, but from the made-up archive
lists() (
	set -euo pipefail
	# shellcheck source=../../scripts/lib/common.sh
	. "$top/scripts/lib/common.sh"
	# shellcheck disable=SC2317
	sources() {
		local suite
		for suite in "$1" $([ "$1" != trixie ] || echo trixie-backports) $([ "$1" != experimental ] || echo sid); do
			echo "deb [trusted=yes] file:$temp/archive $suite main"
		done
	}
	for base in trixie forky sid experimental; do
		rm -f "$CACHE/apt/$base/updated"
		private_apt_update "$base"
	done
)
# kernel ARG: sets status, output and said
kernel() {
	status=0
	output=$("$top/scripts/kernel" "$@" 2>"$temp/said") || status=$?
	said=$(<"$temp/said")
}
# means KERNEL KVER
means() {
	kernel "$1"
	is "$1 is $2" "0 $2" "$status $output"
}
# refused KERNEL PATTERN: with one sentence
refused() {
	kernel "$1"
	if [ "$status" = 3 ] && [ "$(wc -l <"$temp/said")" = 1 ] && [[ $said =~ $2 ]]; then
		echo "ok $1: refused, and why is said"
	else
		echo "not ok $1: refused, and why is said: status $status, '$output', '$said'"
		failed=1
	fi
}

archive trixie 6.12.107+deb13-amd64=6.12.107-1 6.12.117+deb13-amd64=6.12.117-1
archive trixie-backports 7.2.9+deb13-amd64=7.2.9-1~bpo13+1 7.3.9+deb13-amd64=7.3.9-1~bpo13+1 7.2.12+deb13-amd64=7.2.12-1~bpo13+1 \
	7.3.10+deb13-amd64=7.3.10-1~bpo13+1 7.3.10+deb13-amd64=7.3.10-2~bpo13+1 7.3.4+deb13-amd64=7.3.4-1~bpo13+1 \
	7.3.11+deb13-cloud-amd64=7.3.11-1~bpo13+1 7.3.11+deb13-rt-amd64=7.3.11-1~bpo13+1 6.19.11+deb13-amd64=6.19.11-1~bpo13+1
archive forky 7.2.12+deb14-amd64=7.2.12-1
archive sid 7.9.1+deb14-amd64=7.9.1-1 7.10.2+deb14-amd64=7.10.2-1 7.2.13+deb14-amd64=7.2.13-1
archive experimental 7.11-rc9-amd64=7.11~rc9-1~exp1 7.11-rc10-amd64=7.11~rc10-1~exp1
lists >"$temp/lists" 2>&1 || { cat "$temp/lists" >&2; is "apt reads the lists" 0 1; }

kernel
is "by default the newest of trixie-backports" "0 7.3.10+deb13-amd64" "$status $output"
is "which one it is, is said" "kernel: the kernel trixie-backports is 7.3.10+deb13-amd64" "$said"
means trixie-backports/7.2 7.2.12+deb13-amd64
means debug 7.3.10-debug
means forky/7.2 7.2.12+deb14-amd64
means sid 7.10.2+deb14-amd64
means sid/7.9 7.9.1+deb14-amd64
means sid/7.2 7.2.13+deb14-amd64
means experimental 7.11-rc10-amd64
means 7.3.4+deb13-amd64 7.3.4+deb13-amd64
means 7.3.4-debug 7.3.4-debug
BDSNAP_KERNEL=forky kernel
is "BDSNAP_KERNEL names one, too" "0 7.2.12+deb14-amd64" "$status $output"
BDSNAP_KERNEL=7.3.9+deb13-amd64 kernel
is "and pins one" "0 7.3.9+deb13-amd64" "$status $output"

refused trixie '6\.12\.117\+deb13-amd64 6\.12\.107\+deb13-amd64.*7\.2 or later'
refused 6.12.107+deb13-amd64 '7\.2 or later'
refused 6.12.107-debug '7\.2 or later'
refused trixie-backports/6.19 '7\.2 or later'
refused forky/7.3 'forky has no kernel of 7\.3 .*7\.2\.12\+deb14-amd64'
for word in bookworm 7.3.11+deb13-cloud-amd64 sid/7 debug/7.3 'sid; true' 7.3; do
	kernel "$word"
	is "$word is no kernel" "2 " "$status $output"
done

# suites KVER...: which suite's compiler, which suite's packages, of which version
suites() (
	set -euo pipefail
	. "$top/scripts/lib/common.sh"
	for kver; do
		kernel_of "$kver"
		echo "$SUITE $KSUITE $(kernel_version "$kver")"
	done | paste -sd ,
)
is "suites and versions" "trixie trixie-backports 7.3.10-2~bpo13+1,forky forky 7.2.12-1,sid sid 7.10.2-1,experimental experimental 7.11~rc9-1~exp1" \
	"$(suites 7.3.10+deb13-amd64 7.2.12+deb14-amd64 7.10.2+deb14-amd64 7.11-rc9-amd64)"

# Within a run of scripts/test a name keeps its meaning.
: >"$temp/kernels"
BDSNAP_KERNELS=$temp/kernels means trixie-backports 7.3.10+deb13-amd64

# ---- The archive moves on ----

archive trixie-backports 7.4.1+deb13-amd64=7.4.1-1~bpo13+1 7.3.12+deb13-amd64=7.3.12-1~bpo13+1
archive forky 7.4.1+deb14-amd64=7.4.1-1
lists >"$temp/lists" 2>&1 || { cat "$temp/lists" >&2; is "apt reads the lists" 0 1; }
means trixie-backports 7.4.1+deb13-amd64
means trixie-backports/7.3 7.3.12+deb13-amd64
means debug 7.4.1-debug
BDSNAP_KERNELS=$temp/kernels means trixie-backports 7.3.10+deb13-amd64
refused trixie-backports/7.2 'trixie-backports has no kernel of 7\.2 .*7\.4\.1'
refused forky/7.2 'forky has no kernel of 7\.2 .*7\.4\.1\+deb14-amd64'

# gone NAME STATUS: what a script says that needs a pinned kernel's packages
gone() {
	local text
	text=$(grep -a "does not have the kernel 7.3.10+deb13-amd64" "$temp/said")
	if [ "$2" = 2 ] && [[ $text = *"7.4.1+deb13-amd64 7.3.12+deb13-amd64"*--kernel* ]]; then
		echo "ok $1: what is gone, and what to do, is said"
	else
		echo "not ok $1: what is gone, and what to do, is said: status $2, '$(<"$temp/said")'"
		failed=1
	fi
}
for script in build-module vm build-debug-kernel; do
	status=0
	case $script in
	build-module) "$top/scripts/build-module" --kernel 7.3.10+deb13-amd64 >/dev/null 2>"$temp/said" || status=$? ;;
	vm) BDSNAP_KERNEL=7.3.10+deb13-amd64 "$top/scripts/vm" -- true >/dev/null 2>"$temp/said" || status=$? ;;
	build-debug-kernel) "$top/scripts/build-debug-kernel" --kernel 7.3.10-debug >/dev/null 2>"$temp/said" || status=$? ;;
	esac
	gone "$script with a pinned kernel that is gone" $status
done

# What the cache has is still of use, whatever the archive says.
# cache NAME KEY
cache() (
	. "$top/scripts/lib/common.sh"
	entry=$(entry_of "$1" "$2")
	mkdir -p "$entry"
	touch "$entry/.complete"
)
for kver in 7.2.9 7.2.12; do cache guest-$kver+deb13-amd64 any; done
cache module-chroot-7.2.9+deb13-amd64 'trixie 1'
means trixie-backports/7.2 7.2.9+deb13-amd64
cache module-chroot-7.2.12+deb13-amd64 'trixie 1'
means trixie-backports/7.2 7.2.12+deb13-amd64
means trixie-backports 7.4.1+deb13-amd64
refused forky/7.2 'forky has no kernel of 7\.2'
cache guest-7.2.13+deb14-amd64 any
cache module-chroot-7.2.13+deb14-amd64 'sid 1'
means sid/7.2 7.2.13+deb14-amd64
archive sid
archive forky 7.2.13+deb14-amd64=7.2.13-1
lists >"$temp/lists" 2>&1 || { cat "$temp/lists" >&2; is "apt reads the lists" 0 1; }
is "the suite whose compiler is in the cache" "sid sid" "$(suites 7.2.13+deb14-amd64 2>/dev/null | cut -d ' ' -f 1,2)"

exit $failed
