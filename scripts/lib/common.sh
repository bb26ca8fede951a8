# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced by the scripts beside it: messages, the cache, the host's packages, chroots and .debs.
# The sourcing script has `set -euo pipefail`.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${BDSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bdsnap}
DEFAULT_KVER=${BDSNAP_KERNEL:-7.3.4+deb13-amd64}
shopt -s inherit_errexit
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

info() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 2; }
# usage: the comment at the top of the script
usage() { sed -n '4,/^$/s/^#\( \|$\)//p' "$0"; }

# ---- the cache ----

# cached NAME KEY BUILDER [ARG...]: sets ENTRY to a directory that BUILDER filled for this KEY.
# An entry is immutable and has its key in its name, so that one in use is never replaced; it is
# built aside and renamed, so that an interrupted build leaves nothing that looks like an entry.
cached() {
	local name=$1 key=$2 entry lock
	shift 2
	key=$(printf '%s' "$key" | sha256sum | cut -c1-16)
	entry=$CACHE/$name.$key
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

# sources SUITE: apt's source lines for a suite and its backports
sources() {
	local url
	url=$(mirror)
	echo "deb [signed-by=$KEYRING] $url $1 main"
	case $1 in
	bookworm | trixie) echo "deb [signed-by=$KEYRING] $url $1-backports main" ;;
	esac
}

# ---- kernels ----

# kernel_of KVER: sets SUITE, the release whose rustc built the kernel, and KSUITE, where the
# kernel's packages are.
kernel_of() {
	case $1 in
	*+deb13-* | *-debug) SUITE=trixie KSUITE=trixie-backports ;;
	*+deb14-*) SUITE=forky KSUITE=forky ;;
	*) die "which Debian release built the kernel $1? (add it to kernel_of in scripts/lib/common.sh)" ;;
	esac
}

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

# kernel_version KVER: the Debian version of that kernel's packages
kernel_version() {
	local version
	kernel_of "$1"
	private_apt_update "$SUITE"
	version=$(private_apt "$SUITE" apt-cache show "linux-headers-$1" | awk '!v && /^Version: / { v = $2 } END { print v }')
	[ -n "$version" ] || die "Debian's $KSUITE has no linux-headers-$1 (any more)"
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
		"$1" "$3/root" -
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
