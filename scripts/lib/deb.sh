# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced after common.sh and cargo.sh: how the Debian packages are made.

make_deb_chroot() {
	make_chroot "$1" build-essential,debhelper,dh-dkms,cargo,rustc,lintian,apt-utils,xz-utils "$2"
}
# deb_chroot SUITE: sets ENTRY
deb_chroot() { cached "deb-chroot-$1" 1 make_deb_chroot "$1"; }

# linux_sources SUITE all|newest: `NAME VERSION` of Debian's kernel sources that the module can use; of
# each series all versions that the archive has, or only the newest
linux_sources() {
	private_apt_update "$1"
	private_apt "$1" apt-cache search --names-only '^linux-source-[0-9.]*$' | cut -d ' ' -f 1 | sort -u | while read -r name; do
		usable "${name#linux-source-}" || continue
		private_apt "$1" apt-cache madison "$name" | awk -F ' *[|] *' -v name="$name" '{ print name, $2 }' |
			if [ "$2" = newest ]; then head -n 1; else cat; fi
	done
}

# make_rust_tree SUITE NAME VERSION DIR: what is needed of a kernel source, see rust-kbuild
make_rust_tree() {
	local suite=$1 name=$2 version=$3 dir=$4
	need_host xz=xz-utils
	info "packing the Rust parts of $name $version"
	mkdir "$dir/tmp"
	(
		cd "$dir/tmp" || exit
		retry private_apt "$suite" apt-get download "$name=$version" >&2
		dpkg-deb -x ./*.deb .
		"$TOP/src-kmod/rust-kbuild" --pack "usr/src/$name.tar.xz" "$dir/linux-$version.tar.xz"
	)
	rm -rf "$dir/tmp"
}

# rust_trees SUITE all|newest DIR: puts the archives there
rust_trees() {
	local name version
	while read -r name version; do
		cached "rust-tree-$version" "$name $version" make_rust_tree "$1" "$name" "$version"
		cp "$ENTRY"/*.tar.xz "$3/"
	done < <(linux_sources "$1" "$2")
}

# make_vendor DIR: the crates of Cargo.lock. Those that only other systems' builds need are emptied:
# they are large, partly binary, and cargo only wants them to exist.
make_vendor() {
	local crate
	run_cargo deb vendor --locked --quiet /mnt/target/vendor >/dev/null
	rm -rf "$1/vendor"
	cp -r "$CACHE/cargo/deb/target/vendor" "$1/vendor"
	for crate in "$1"/vendor/{windows,winapi,wasi,wasm,wit-,r-efi,redox,hermit,js-sys,web-}*; do
		[ -d "$crate" ] || continue
		find "$crate" -mindepth 1 ! -name Cargo.toml ! -name .cargo-checksum.json -delete 2>/dev/null || :
		sed -i 's/"files":{[^}]*}/"files":{}/' "$crate/.cargo-checksum.json"
		mkdir -p "$crate/src"
		: >"$crate/src/lib.rs"
	done
}

# What the packages are made of
packaged() {
	(cd "$TOP" && find . \( -path ./.git -o -path ./target -o -path ./.ci -o -path ./scripts \) -prune \
		-o -type f -print -o -type l -print | LC_ALL=C sort)
}

# make_deb SUITE KERNELS VERSION SOURCE DIR
make_deb() {
	local suite=$1 kernels=$2 version=$3 with_source=$4 dir=$5 tree chroot build target
	deb_chroot "$suite"
	chroot=$ENTRY/root
	cached cargo-vendor "$(sha256sum <"$TOP/Cargo.lock") 1" make_vendor
	tree=$dir/work/bdsnap
	mkdir -p "$tree/rust-trees"
	packaged | tar -c -C "$TOP" -T - | tar -x -C "$tree"
	# With their times, or cargo would run build scripts again.
	cp -a "$ENTRY/vendor" "$tree/vendor"
	rust_trees "$suite" "$kernels" "$tree/rust-trees"
	# Each release's packages have a version of their own; that of the next one is higher.
	[ -n "$version" ] || version=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$tree/debian/changelog")
	sed -i "1s/([^)]*) [A-Z]*/($version~$(release_number "$suite")) $suite/i" "$tree/debian/changelog"

	info "building packages of bdsnap $version for $suite"
	# The dependencies' objects are kept for the next time.
	target=$CACHE/cargo/deb-$suite
	mkdir -p "$target"
	build=--build=binary
	[ -z "$with_source" ] || build=--build=full
	(
		flock 9
		in_chroot "$chroot" "$dir/work:/mnt/work" "$target:/mnt/target" -- \
			env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8 CARGO_TARGET_DIR=/mnt/target \
			DEB_BUILD_OPTIONS="noautodbgsym parallel=$(nproc)" \
			unshare --net sh -c 'cd /mnt/work/bdsnap && exec dpkg-buildpackage -us -uc "$@"' - $build >"$dir/log" 2>&1
	) 9>"$target/lock" || {
		tail -n 50 "$dir/log" >&2
		die "building the packages failed"
	}
	mv "$dir"/work/bdsnap[-_]* "$dir/"
	rm -rf "$dir/work"
	make_pref "$chroot" >"$dir/bdsnap.pref"
	in_chroot "$chroot" "$dir:/mnt/repo" -- \
		sh -euc 'cd /mnt/repo; apt-ftparchive packages . >Packages; [ -z "$1" ] || apt-ftparchive sources . >Sources; apt-ftparchive -o APT::FTPArchive::Release::Origin=bdsnap release . >/tmp/Release; mv /tmp/Release .' - "$with_source"
}
# make_pref CHROOT: the release's own compiler, also where backports are preferred
make_pref() {
	local version
	version=$(in_chroot "$1" -- rustc --version | cut -d " " -f 2)
	printf '%s\n' "Explanation: bdsnap-dkms needs the compiler that the kernels of this release were built with." \
		"Explanation: What comes with it has to be of its version, or apt finds no solution and leaves the module out." \
		"Package: rustc rust-src rust-llvm rustfmt cargo libstd-rust-dev" "Pin: version ${version%.*}.*" "Pin-Priority: 991"
}
release_number() {
	case $1 in
	trixie) echo deb13 ;;
	forky) echo deb14 ;;
	*) die "for which release? (not $1)" ;;
	esac
}

# build_deb SUITE KERNELS VERSION SOURCE: sets ENTRY, an apt repository; see scripts/build-deb
build_deb() {
	cached "deb-$1" "$(packaged | hash_tree "$TOP") $* $(linux_sources "$1" "$2" | sha256sum) $(sha256sum <"$TOP/scripts/lib/deb.sh")" make_deb "$@"
}

# lintian_deb SUITE REPOSITORY: fails when it has a complaint
lintian_deb() {
	deb_chroot "$1"
	in_chroot "$ENTRY/root" "$2:/mnt/repo:ro" -- \
		env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8 sh -c 'exec lintian --allow-root --fail-on error,warning --tag-display-limit 0 /mnt/repo/*.changes' >&2
}
