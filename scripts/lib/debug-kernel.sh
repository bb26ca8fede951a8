# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced after common.sh: the debug kernel, which is called VERSION-debug.

is_debug() { [[ $1 = *-debug ]]; }

# So much longer may everything take on it, in an emulator.
DEBUG_SLOW=3

make_debug_chroot() {
	local kver=$1 version series
	kernel_of "$kver"
	version=$(kernel_version "${kver%-debug}+deb13-amd64")
	series=$(cut -d. -f1,2 <<<"$kver")
	# Clang, because with KASAN the kernel lets Rust be used only together with it.
	make_chroot "$SUITE" "clang,lld,llvm,make,binutils,xz-utils,kmod,flex,bison,bc,cpio,libc6-dev,libelf-dev,rustc,rust-src,rust-clippy,bindgen,linux-source-$series=$version" "$2"
}

# debug_chroot KVER
debug_chroot() { cached "debug-chroot-$1" 1 make_debug_chroot "$1"; }

# in_debug_chroot CHROOT SOURCE:TARGET[:ro]... -- CMD...: with Clang as the kernel's compiler
in_debug_chroot() {
	local chroot=$1 binds=()
	shift
	while [ "$1" != -- ]; do binds+=("$1"); shift; done
	shift
	in_chroot "$chroot/root" "${binds[@]}" -- env -i PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 LLVM=1 \
		KBUILD_BUILD_USER=bdsnap KBUILD_BUILD_HOST=debug KBUILD_BUILD_TIMESTAMP=1970-01-01 "$@"
}

# make_debug_kernel KVER CHROOT DIR: in a tree that keeps its objects for the next time
make_debug_kernel() {
	local kver=$1 chroot=$2 dir=$3 tree=$CACHE/build/kernel-$1
	if [ "$(cat "$tree/.chroot" 2>/dev/null)" != "${chroot##*/}" ]; then
		rm -rf "$tree"
		mkdir -p "$tree"
		tar -xJf "$chroot"/root/usr/src/linux-source-*.tar.xz -C "$tree" --strip-components=1
		echo "${chroot##*/}" >"$tree/.chroot"
	fi
	cp "$TOP/tests/debug/kernel.config" "$tree/.fragment"
	info "building the kernel $kver; this takes long; the log: $tree/.log"
	# shellcheck disable=SC2016
	in_debug_chroot "$chroot" "$tree:/mnt/linux" "$dir:/mnt/out" -- sh -euc '
		cd /mnt/linux
		make -s allnoconfig KCONFIG_ALLCONFIG=.fragment
		missing=$(grep -E "^(CONFIG_|# CONFIG_.* is not set)" .fragment | while read -r line; do
			case $line in
			"#"*) name=${line#"# "}; ! grep -q "^${name%% *}=" .config || echo "$line" ;;
			*) grep -qxF "$line" .config || echo "$line" ;;
			esac
		done)
		[ -z "$missing" ] || { echo "not so in the resulting configuration:"; echo "$missing"; exit 1; }
		[ "$(make -s kernelrelease)" = "$1" ] || { echo "its name is $(make -s kernelrelease)"; exit 1; }
		# KASAN and UBSAN look at the code of modules only. To instrument the kernel as well would take twice
		# as long here, and longer than that in each guest.
		make -j"$(nproc)" KASAN_SANITIZE=n UBSAN_SANITIZE=n bzImage modules
		make modules_install INSTALL_MOD_PATH=/mnt/out/modules/usr DEPMOD=true
		cp "$(make -s image_name)" /mnt/out/vmlinuz' - "$kver" >"$tree/.log" 2>&1 || {
		tail -n 30 "$tree/.log" >&2
		die "building the kernel $kver failed"
	}
	# Of the tree, what modules are built against.
	mkdir "$dir/linux"
	(cd "$tree" && find . \( -path ./Documentation -o -path ./.log \) -prune -o -type f \
		! -name '*.o' ! -name '*.c' ! -name '*.cmd' ! -name '*.a' ! -name '*.ko' ! -name '*.mod' \
		! -path './vmlinux*' ! -path './arch/x86/boot/*' ! -path './arch/[!x]*/*' -o -path ./scripts/module-common.c -o -type l) |
		tar -c -C "$tree" -T - | tar -x -C "$dir/linux"
}

# debug_kernel KVER: sets ENTRY to a folder with vmlinuz, modules/ and linux/, which modules are built
# against, and DEBUG_CHROOT to the chroot with the compilers
debug_kernel() {
	debug_chroot "$1"
	DEBUG_CHROOT=$ENTRY
	cached "kernel-$1" "$(basename "$DEBUG_CHROOT") $(cat "$TOP/tests/debug/kernel.config") 2" make_debug_kernel "$1" "$DEBUG_CHROOT"
}
