# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced after common.sh: cargo of the Debian release that the tools are made for.

make_cargo_chroot() {
	make_chroot trixie cargo,rustc,rust-clippy,rustfmt,gcc,libc6-dev,ca-certificates "$1"
}

# The cargo workspace with all that a crate may include; not what can't influence it.
sources_of_tools() {
	(cd "$TOP" && find . \( -path ./.git -o -path ./target -o -path ./scripts -o -path ./.ci -o -name '*.sh' \) -prune \
		-o -type f -print | LC_ALL=C sort)
}

# run_cargo NAME ARG...: cargo on a copy of the workspace in the cache, which keeps its target
# directory for the next time. Two NAMEs can run at the same time.
run_cargo() {
	local dir=$CACHE/cargo/$1 command=$2 home=${CARGO_HOME:-$HOME/.cargo} bundle binds environment lock
	shift
	cached cargo-chroot 1 make_cargo_chroot
	mkdir -p "$dir/src" "$dir/target" "$CACHE/cargo/home"
	exec {lock}>"$dir/lock"
	flock "$lock"
	sources_of_tools | update_tree "$TOP" "$dir/src"
	binds=("$dir/src:/mnt/src" "$dir/target:/mnt/target" "$CACHE/cargo/home:/mnt/cargo" /etc/resolv.conf:/etc/resolv.conf:ro)
	# How this machine reaches the registry is its own affair: its configuration is used, not copied.
	[ ! -e "$home/config.toml" ] || binds+=("$home/config.toml:/mnt/cargo/config.toml:ro")
	bundle=${CARGO_HTTP_CAINFO:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
	[ ! -s "$bundle" ] || binds+=("$bundle:/etc/ssl/certs/ca-certificates.crt:ro")
	mapfile -t environment < <(env | grep -E '^(CARGO_(HTTP|NET|REGISTRIES|REGISTRY|SOURCE|TERM)_|(https?|no|all)_proxy=|(HTTPS?|NO|ALL)_PROXY=)' |
		grep -v '^CARGO_HTTP_CAINFO=')
	# shellcheck disable=SC2016
	in_chroot "$ENTRY/root" "${binds[@]}" -- \
		env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8 CARGO_HOME=/mnt/cargo CARGO_TARGET_DIR=/mnt/target \
		RUST_BACKTRACE="${RUST_BACKTRACE:-}" ${environment[@]+"${environment[@]}"} \
		sh -c 'cd /mnt/src && exec cargo "$@"' - "$@" {lock}>&- || die "cargo $command failed"
}
