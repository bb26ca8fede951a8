# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced by the scripts beside it: messages, the cache, the host's packages, chroots and .debs.
# The sourcing script has `set -euo pipefail`.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${BDSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bdsnap}
shopt -s inherit_errexit
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

info() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 2; }
# usage: the comment at the top of the script
usage() { sed -n '4,/^$/s/^#\( \|$\)//p' "$0"; }

# ---- the cache ----

# entry_of NAME KEY: the entry's folder, whether it exists or not
entry_of() { echo "$CACHE/$1.$(printf '%s' "$2" | sha256sum | cut -c1-16)"; }

# cached NAME KEY BUILDER [ARG...]: sets ENTRY to a directory that BUILDER filled for this KEY.
# An entry is immutable and has its key in its name, so that one in use is never replaced; it is
# built aside and renamed, so that an interrupted build leaves nothing that looks like an entry.
cached() {
	local name=$1 entry lock
	entry=$(entry_of "$1" "$2")
	shift 2
	if [ ! -e "$entry/.complete" ]; then
		[ "$(id -u)" = 0 ] || die "must run as root"
		mkdir -p "$CACHE/lock"
		exec {lock}>"$CACHE/lock/$name"
		flock "$lock"
		if [ ! -e "$entry/.complete" ]; then
			rm -rf --one-file-system "$entry" "$entry.new"
			mkdir -p "$entry.new"
			# The builder must not inherit the lock, or a stray daemon would keep it. And it must not
			# be a condition of anything, or bash would switch `set -e` off inside.
			(
				exec {lock}>&-
				trap 'rm -rf --one-file-system "$entry.new"' EXIT
				"$@" "$entry.new"
				touch "$entry.new/.complete"
				mv "$entry.new" "$entry"
			)
			prune "$name"
		fi
		exec {lock}>&-
	fi
	touch -c "$entry/.complete"     # the time of the last use
	ENTRY=$entry
}

# prune NAME: forget the entries of this name that nothing has used for two days
prune() {
	local stamp
	find "$CACHE" -maxdepth 2 -path "$CACHE/$1.????????????????/.complete" -mtime +1 |
		while read -r stamp; do rm -rf --one-file-system "${stamp%/*}"; done
}

# hash_tree DIR: one hash over the names, modes and contents of the files that standard input names
hash_tree() {
	tar -ch -C "$1" -T - --mtime=@0 --owner=0 --group=0 --numeric-owner | sha256sum | cut -d' ' -f1
}

# update_tree FROM TO: copies the files that standard input names and deletes those it named the
# last time. Only what differs is touched, so that make and cargo see changes by content, whatever
# the time stamps of this checkout say.
update_tree() {
	local file
	mkdir -p "$2"
	sort >"$2/.sources.new"
	if [ -e "$2/.sources" ]; then
		comm -23 "$2/.sources" "$2/.sources.new" | while read -r file; do rm -f "$2/$file"; done
	fi
	while read -r file; do
		cmp -s "$1/$file" "$2/$file" && continue
		mkdir -p "$(dirname "$2/$file")"
		cp "$1/$file" "$2/$file"
	done <"$2/.sources.new"
	mv "$2/.sources.new" "$2/.sources"
}

# retry CMD...: networks fail now and then
retry() {
	local n
	for n in 1 2 3; do
		"$@" && return
		info "attempt $n failed: $1"
		sleep $((n * 5))
	done
	"$@"
}

# ---- the host ----

# need_host COMMAND=PACKAGE...: installs what is missing
need_host() {
	local pair missing=()
	for pair; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	info "installing ${missing[*]}"
	mkdir -p "$CACHE/lock"
	(
		flock 9
		retry apt-get -q update
		retry apt-get -qy install --no-install-recommends "${missing[@]}"
	) 9>"$CACHE/lock/host-apt" >&2
}

main_archive() {
	apt-get indextargets --format "\$(ORIGIN)|\$(LABEL)|\$(COMPONENT)|\$(REPO_URI)" "Created-By: Packages" |
		awk -F"|" '!url && /^Debian\|Debian\|main\|/ { url = $4 } END { print url }'
}

# The mirror is the one that this machine's own apt uses.
mirror() {
	local url
	url=$(main_archive)
	if [ -z "$url" ]; then
		retry apt-get -q update >&2
		url=$(main_archive)
	fi
	[ -n "$url" ] || die "this machine's apt knows no Debian archive"
	echo "$url"
}

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# sources SUITE: apt's source lines for a suite and its backports; experimental is an addition to sid
sources() {
	local url
	url=$(mirror)
	echo "deb [signed-by=$KEYRING] $url $1 main"
	case $1 in
	bookworm | trixie) echo "deb [signed-by=$KEYRING] $url $1-backports main" ;;
	experimental) echo "deb [signed-by=$KEYRING] $url sid main" ;;
	esac
}

# ---- foreign suites ----

# private_apt SUITE COMMAND...: apt-get or apt-cache with a state of its own for a foreign suite
private_apt() {
	local dir=$CACHE/apt/$1 tool=$2
	shift 2
	"$tool" -q -o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
		-o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false \
		-o Acquire::Retries=3 "$@"
}

# private_apt_update SUITE: at most once an hour
private_apt_update() {
	local dir=$CACHE/apt/$1
	[ -z "$(find "$dir/updated" -mmin -60 2>/dev/null)" ] || return 0
	mkdir -p "$dir"/state/lists/partial "$dir"/cache/archives/partial "$CACHE/lock"
	(
		flock 9
		: >"$dir/status"
		sources "$1" >"$dir/sources.list"
		retry private_apt "$1" apt-get update >&2
		touch "$dir/updated"
	) 9>"$CACHE/lock/apt-$1"
}

# ---- kernels ----

# A kernel is named by suite and series, or by its version; see scripts/kernel.
DEFAULT_KERNEL=${BDSNAP_KERNEL:-trixie-backports}
# The first series that the module can use: what it needs of Rust, older ones lack. Nothing else here decides that.
FIRST_SERIES=7.2
TOO_OLD="the module needs Linux $FIRST_SERIES or later, older ones lack what it needs of Rust"
# As in 7.3.4+deb13-amd64. Cloud and rt kernels are none of ours.
KVER_PATTERN='[0-9]+[.][0-9.]+(-rc[0-9]+)?([+][a-z0-9.~]+)?'

# series_of KVER: 7.3 for 7.3.4+deb13-amd64
series_of() { sed -E 's/^([0-9]+\.[0-9]+).*/\1/' <<<"$1"; }
# usable KVER|SERIES
usable() { dpkg --compare-versions "$(series_of "$1")" ge "$FIRST_SERIES"; }

# archive_kernels SUITE: `KVER VERSION` of each kernel in the archive, the newest first; VERSION is that of its packages
archive_kernels() {
	local base=${1%-backports} list new names
	private_apt_update "$base"
	list=$CACHE/apt/$base/kernels-$1
	# Kept, since apt-cache takes seconds on a busy machine.
	if [ ! "$list" -nt "$CACHE/apt/$base/updated" ]; then
		names=$(private_apt "$base" apt-cache search --names-only "^linux-headers-$KVER_PATTERN-amd64\$" | cut -d ' ' -f 1)
		new=$(mktemp "$list.XXXXXX")
		# shellcheck disable=SC2086
		[ -z "$names" ] || private_apt "$base" apt-cache madison $names |
			awk -F '[ |]+' -v suite="$1/main" '{ sub(/^ +/, "") } $4 == suite { sub(/^linux-headers-/, "", $1); print $1, $2 }' |
			sort -k 2,2Vr | awk '!seen[$1]++' >"$new"
		mv "$new" "$list"
	fi
	cat "$list"
}

# cached_kernels SUITE: those that the cache has headers and an image of, the newest first
cached_kernels() {
	local entry kver
	# Those of a release itself are too old.
	[ "$1" != trixie ] || return 0
	for entry in "$CACHE"/guest-[0-9]*/.complete; do
		kver=${entry%.*/.complete}
		kver=${kver##*/guest-}
		[ ! -e "$(entry_of "module-chroot-$kver" "${1%-backports} 1")/.complete" ] || echo "$kver"
	done | sort -Vru
}

# usable_kernels SERIES: of lines that begin with a KVER, those KVERs that are usable and, if a series is given, of it
usable_kernels() {
	local kver _
	while read -r kver _; do
		if [ -n "$kver" ] && usable "$kver" && [ "${1:-$(series_of "$kver")}" = "$(series_of "$kver")" ]; then echo "$kver"; fi
	done
}

# no_kernel WHY: ends with status 3
no_kernel() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 3; }

# resolve_kernel KERNEL: sets KVER. Within one run of scripts/test each name has one meaning, $BDSNAP_KERNELS.
resolve_kernel() {
	local name=$1 suite=${1%%/*} series='' has
	KVER=''
	if [[ $name =~ ^$KVER_PATTERN-(amd64|debug)$ ]]; then
		usable "$name" || no_kernel "no kernel $name: $TOO_OLD"
		KVER=$name
		return
	fi
	case $suite in
	trixie | trixie-backports | forky | sid | experimental | debug) ;;
	*) die "which kernel is $name? (see scripts/kernel --help)" ;;
	esac
	if [[ $name = */* ]]; then
		series=${name#*/}
		[[ $series =~ ^[0-9]+\.[0-9]+$ && $suite != debug ]] || die "which kernel is $name? (see scripts/kernel --help)"
		usable "$series" || no_kernel "no kernel of $name: $TOO_OLD"
	fi
	if [ -e "${BDSNAP_KERNELS:-}" ]; then
		KVER=$(awk -v name="$name" '!found && $1 == name { found = $2 } END { print found }' "$BDSNAP_KERNELS")
		[ -z "$KVER" ] || return 0
	fi
	if [ "$name" = debug ]; then
		resolve_kernel trixie-backports
		KVER=${KVER%%+*}-debug
	else
		has=$(archive_kernels "$suite")
		KVER=$(usable_kernels "$series" <<<"$has" | sed -n 1p)
		if [ -z "$KVER" ]; then
			KVER=$(cached_kernels "$suite" | usable_kernels "$series" | sed -n 1p)
			has=$(cut -d ' ' -f 1 <<<"$has" | paste -sd ' ')
			[ -n "$KVER" ] || no_kernel "Debian's $suite has no kernel ${series:+of $series }that will do (any more), only: ${has:-none}." \
				"Name another suite or series (scripts/kernel --help); $TOO_OLD"
			info "Debian's $suite has no such kernel any more; the cache has one"
		fi
	fi
	info "the kernel $name is $KVER"
	[ -z "${BDSNAP_KERNELS:-}" ] || echo "$name $KVER" >>"$BDSNAP_KERNELS"
}

# kernel_of KVER: sets SUITE, the release whose rustc built the kernel, and KSUITE, where the kernel's packages are
kernel_of() {
	local suite
	case $1 in
	*+deb13-* | *-debug)
		SUITE=trixie KSUITE=trixie-backports
		return
		;;
	esac
	# Such a kernel goes from suite to suite. What the cache has comes first: it may be nowhere else.
	for suite in forky sid experimental; do
		SUITE=$suite KSUITE=$suite
		[ ! -e "$(entry_of "module-chroot-$1" "$suite 1")/.complete" ] || return 0
	done
	for suite in forky sid experimental; do
		SUITE=$suite KSUITE=$suite
		[[ $'\n'$(archive_kernels "$suite") != *$'\n'"$1 "* ]] || return 0
	done
	SUITE=forky KSUITE=forky
}

# kernel_version KVER: the Debian version of that kernel's packages
kernel_version() {
	local has version
	kernel_of "$1"
	has=$(archive_kernels "$KSUITE")
	version=$(awk -v kver="$1" '$1 == kver { print $2 }' <<<"$has")
	has=$(usable_kernels '' <<<"$has" | paste -sd ' ')
	[ -n "$version" ] || die "Debian's $KSUITE does not have the kernel $1 (any more), and the cache lacks parts of it." \
		"Name one that is there (${has:-none is}), or $KSUITE for the newest, with --kernel or BDSNAP_KERNEL"
	echo "$version"
}

# ---- chroots ----

# make_chroot SUITE PACKAGES DIR: a minimal Debian with PACKAGES (as apt takes them, in one word)
make_chroot() {
	info "making a chroot of $1: $2"
	need_host mmdebstrap=mmdebstrap
	retry fresh_mmdebstrap "$1" "$2" "$3" >&2
}

fresh_mmdebstrap() {
	rm -rf --one-file-system "$3/root"
	sources "$1" | mmdebstrap --quiet --mode=root --variant=apt --architectures=amd64 --include="$2" \
		--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
		--aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User "root"' \
		--dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
		"${1/experimental/sid}" "$3/root" -
}

# in_chroot ROOT [SOURCE:TARGET[:ro]...] -- CMD...: runs CMD in a mount namespace of its own, so that
# nothing stays mounted. ROOT itself is read-only, for it is a cache entry that others use as well;
# the targets are therefore below /mnt or /tmp.
in_chroot() {
	local root=$1 binds=()
	shift
	while [ "$1" != -- ]; do binds+=("$1"); shift; done
	shift
	need_host mount=mount
	# shellcheck disable=SC2016
	unshare --mount --propagation=private -- bash -euc '
		root=$1; shift
		mount --bind "$root" "$root"
		mount -o remount,bind,ro "$root"
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		mount -t tmpfs tmpfs "$root/tmp"
		mount -t tmpfs tmpfs "$root/mnt"
		while [ "$1" != -- ]; do
			IFS=: read -r source target options <<<"$1"
			target=$root$target
			if [ ! -d "$source" ]; then [ -e "$target" ] || touch "$target"; else mkdir -p "$target"; fi
			mount --bind "$source" "$target"
			[ -z "$options" ] || mount -o "remount,bind,$options" "$target"
			shift
		done
		shift
		exec chroot "$root" "$@"' - "$root" ${binds[@]+"${binds[@]}"} -- "$@"
}
