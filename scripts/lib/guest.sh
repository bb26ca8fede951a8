# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced after common.sh: the parts that a guest is put together from. All are cache entries:
#   emulator      QEMU
#   guest_root    root.erofs, a Debian 13 with the programs that tests need, and a static busybox
#   guest_kernel  vmlinuz, modules.erofs, initramfs.cpio (drivers only) and modules/ of one kernel
#   guest_extras  extras.cpio, what this checkout adds: init, module, tools, configuration
# The images are not compressed: the host has their pages cached, the emulated guest is slow.

# shellcheck source=debug-kernel.sh
. "$TOP/scripts/lib/debug-kernel.sh"

make_emulator() { make_chroot trixie qemu-system-x86 "$1"; }

# emulator: sets EMULATOR, the words that start Debian 13's QEMU. Debian 12's (7.2) makes a kernel oops
# that patches itself while other processors run, if it emulates them in several threads. It is run
# in place, with its own libraries; no chroot, because it needs the host's files.
emulator() {
	cached qemu 1 make_emulator
	local root=$ENTRY/root
	EMULATOR=("$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/qemu-system-x86_64"
		-L "$root/usr/share/qemu" -L "$root/usr/share/seabios")
}

GUEST_PACKAGES=udev,kmod,mount,util-linux,procps,psmisc,strace,jq,xxd,attr,acl,\
e2fsprogs,xfsprogs,btrfs-progs,dosfstools,exfatprogs,f2fs-tools,nilfs-tools,udftools,util-linux-extra,ntfs-3g,jfsutils,erofs-utils,squashfs-tools,\
dmsetup,mdadm,cryptsetup-bin,lvm2,thin-provisioning-tools,kpartx,fdisk,gdisk,parted,sg3-utils,eject,fio,stress-ng,busybox-static

make_guest_root() {
	make_chroot trixie "$GUEST_PACKAGES" "$1"
	rm -rf "$1"/root/var/cache/apt "$1"/root/var/lib/apt/lists "$1"/root/boot "$1"/root/etc/mdadm/mdadm.conf
	mkdir -p "$1"/root/{snapshot,host,tests,mnt}
	echo guest >"$1/root/etc/hostname"
	printf '127.0.0.1 localhost guest\n' >"$1/root/etc/hosts"
	: >"$1/root/etc/fstab"
	: >"$1/root/etc/resolv.conf"
	mkfs.erofs --quiet "$1/root.erofs" "$1/root" >&2
	cp "$1/root/usr/bin/busybox" "$1/"
	rm -rf --one-file-system "$1/root"
}

guest_root() { cached guest-root "$GUEST_PACKAGES 1" make_guest_root; }

# What no disk ever needs; it would be half a gigabyte.
GUEST_DROPS='sound drivers/gpu drivers/hwmon drivers/iio drivers/infiniband drivers/input drivers/media drivers/net drivers/staging drivers/usb'
# What finds the root file system, on top of what is built in
INITRAMFS_MODULES='virtio_blk erofs overlay'

# kept_guest_kernel KVER: of a kernel that the archive has dropped, what an older entry of the cache has
kept_guest_kernel() {
	local archive entry
	kernel_of "$1"
	archive=$(archive_kernels "$KSUITE")
	[[ $'\n'$archive != *$'\n'"$1 "* ]] || return 0
	for entry in "$CACHE/guest-$1".*/.complete; do
		[ ! -e "$entry" ] || echo "${entry%/.complete}"
	done | head -n 1
}

make_guest_kernel() {
	local kver=$1 root=$2 built=$3 dir=$4 kept package drop lib module file
	lib=$dir/modules/usr/lib/modules/$kver
	kept=''
	[ -n "$built" ] || kept=$(kept_guest_kernel "$kver")
	if [ -n "$built" ]; then
		cp -r "$built/modules" "$built/vmlinuz" "$dir/"
		rm -f "$lib/build"
	elif [ -n "$kept" ]; then
		cp -r "$kept/modules" "$kept/vmlinuz" "$dir/"
		rm "$dir/modules/lib"
	else
		kernel_of "$kver"
		kernel_version "$kver" >/dev/null    # or says that it is gone
		(
			mkdir "$dir/debs"
			cd "$dir/debs" || exit
			retry private_apt "$SUITE" apt-get download "linux-binary-$kver" "linux-modules-$kver" "linux-base-$kver" >&2 ||
				die "cannot get the kernel $kver from Debian's $KSUITE: if it has gone within the hour, remove $CACHE/apt/$SUITE/updated and try again"
		)
		for package in "$dir"/debs/*.deb; do dpkg-deb -x "$package" "$dir/modules"; done
		mv "$lib/vmlinuz" "$dir/"
		rm -rf "$dir/debs" "$dir/modules/usr/share" "$dir/modules/boot"
		for drop in $GUEST_DROPS; do rm -rf "$lib/kernel/$drop"; done
		find "$lib/kernel" -name '*.ko.xz' -print0 | xargs -0 -r -P "$(nproc)" -n 64 xz -d
	fi
	ln -s usr/lib "$dir/modules/lib"        # where depmod looks
	depmod -b "$dir/modules" "$kver" 2>/dev/null
	mkfs.erofs --quiet "$dir/modules.erofs" "$dir/modules" >&2

	mkdir -p "$dir/initramfs"/{bin,modules}
	cp "$root/busybox" "$dir/initramfs/bin/"
	# shellcheck disable=SC2086
	modprobe -d "$dir/modules" -S "$kver" --show-depends -a $INITRAMFS_MODULES |
		awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
		cp "$module" "$dir/initramfs/modules/"
		echo "${module##*/}" >>"$dir/initramfs/modules/order"
	done
	make_cpio "$dir/initramfs" "$dir/initramfs.cpio"
	rm -rf "$dir/initramfs"
}

# make_cpio DIR FILE: several of these, one after the other, make an initramfs
make_cpio() {
	(cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$2"
}

# guest_kernel KVER ROOT-ENTRY
guest_kernel() {
	local built=''
	if is_debug "$1"; then
		debug_kernel "$1"
		built=$ENTRY
	fi
	cached "guest-$1" "$INITRAMFS_MODULES|$GUEST_DROPS|$(basename "$2")${built:+ ${built##*/}} 2" make_guest_kernel "$1" "$2" "$built"
}

# make_guest_extras KVER KERNEL-ENTRY MODULE TOOLS DIR
make_guest_extras() {
	local kver=$1 kernel=$2 module=$3 tools=$4 dir=$5 lib tool
	mkdir -p "$dir/x/extras"/{etc/modprobe.d,usr/sbin,usr/lib/udev/rules.d,usr/libexec/bdsnap}
	if [ -n "$module" ]; then
		lib=$dir/x/extras/usr/lib/modules/$kver
		mkdir -p "$lib/updates/dkms"
		cp "$module" "$lib/updates/dkms/bdsnap.ko"
		# The indexes have to know the module and all others: depmod sees both through links.
		ln -s "$kernel/modules/usr/lib/modules/$kver/kernel" "$lib/kernel"
		cp "$kernel/modules/usr/lib/modules/$kver"/modules.{builtin,builtin.modinfo,order} "$lib/"
		ln -s usr/lib "$dir/x/extras/lib"
		depmod -b "$dir/x/extras" "$kver"
		rm "$lib/kernel" "$dir/x/extras/lib"
	fi
	if [ -n "$tools" ]; then
		for tool in "$tools"/*; do
			case ${tool##*/} in
			bdsnap-handover) cp "$tool" "$dir/x/extras/usr/libexec/bdsnap/" ;;
			*) cp "$tool" "$dir/x/extras/usr/sbin/" ;;
			esac
		done
		[ ! -e "$TOP/debian/bdsnap.modprobe" ] || cp "$TOP/debian/bdsnap.modprobe" "$dir/x/extras/etc/modprobe.d/bdsnap.conf"
		[ ! -e "$TOP/udev/60-bdsnap.rules" ] || cp "$TOP/udev/60-bdsnap.rules" "$dir/x/extras/usr/lib/udev/rules.d/"
	fi
	install -m 755 "$TOP/scripts/guest/initramfs-init" "$dir/x/init"
	install -D -m 755 "$TOP/scripts/guest/init" "$dir/x/extras/usr/libexec/guest/init"
	make_cpio "$dir/x" "$dir/extras.cpio"
	rm -rf "$dir/x"
}

# guest_extras KVER KERNEL-ENTRY MODULE TOOLS: MODULE and TOOLS may be empty
guest_extras() {
	local files=("$TOP"/scripts/guest/*)
	[ ! -e "$TOP/debian/bdsnap.modprobe" ] || files+=("$TOP/debian/bdsnap.modprobe")
	[ ! -e "$TOP/udev/60-bdsnap.rules" ] || files+=("$TOP/udev/60-bdsnap.rules")
	[ -z "$3" ] || files+=("$3")
	[ -z "$4" ] || files+=("$4"/*)
	cached "guest-extras-$1" "$(basename "$2") $(cat "${files[@]}" | sha256sum) ${files[*]##*/} 1" make_guest_extras "$@"
}
