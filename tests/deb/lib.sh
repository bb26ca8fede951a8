# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced by the cases of the packages, after tests/lib.sh: Debian systems with systemd and stock kernels,
# in which packages are installed as a user would, and which are booted then.

# shellcheck source=../../scripts/lib/common.sh
. "$top/scripts/lib/common.sh"
# shellcheck source=../../scripts/lib/guest.sh
. "$top/scripts/lib/guest.sh"

# The release; a case may choose another before it sources this.
DEB_SUITE=${DEB_SUITE:-trixie}
BASE_PACKAGES=systemd-sysv,udev,dbus,kmod,procps,e2fsprogs,mount,util-linux,fdisk,dmsetup,lvm2,kexec-tools,apt,\
initramfs-tools
case $DEB_SUITE in
trixie)
	# The newest from backports, and before it the newest of another series, for of each series the packages know
	# the newest. NEW_KVER is empty where there is only one series. One that they don't know, if there is one.
	resolve_kernel trixie-backports
	NEW_KVER=$KVER OLD_KVER='' KNOWN_NOT=''
	archive=$(archive_kernels trixie-backports | usable_kernels '')
	all_series=" $(series_of "$NEW_KVER") "
	for kver in $archive; do
		[ "$kver" != "$NEW_KVER" ] || continue
		series=$(series_of "$kver")
		if [[ $all_series = *" $series "* ]]; then KNOWN_NOT=${KNOWN_NOT:-$kver}; else OLD_KVER=${OLD_KVER:-$kver}; fi
		all_series+="$series "
	done
	[ -n "$OLD_KVER" ] || { OLD_KVER=$NEW_KVER NEW_KVER=''; }
	# The release's own, which is too old
	archive=$(archive_kernels trixie)
	kver=$(sed -n '1s/ .*//p' <<<"$archive")
	BASE_PACKAGES+=,linux-image-$kver,linux-headers-$kver,linux-base/trixie-backports
	;;
forky)
	resolve_kernel forky
	OLD_KVER=$KVER
	;;
esac
info "the packages are tried with ${OLD_KVER}${NEW_KVER:+, then $NEW_KVER}"

make_deb_base() {
	local version
	version=$(kernel_version "$OLD_KVER")
	make_chroot "$DEB_SUITE" "$BASE_PACKAGES,linux-image-$OLD_KVER=$version,linux-headers-$OLD_KVER=$version" "$1"
}
# deb_base: sets ENTRY; a Debian 13 with a kernel of its own, which is too old, and one from backports; or a
# Debian 14 with its kernel
deb_base() { cached "deb-base-$DEB_SUITE" "$BASE_PACKAGES $OLD_KVER 1" make_deb_base; }

# ---- A system: a folder with what differs from the base and, once it is to boot, with a disk ----

# in_system SYSTEM [SOURCE:TARGET]... -- CMD...: runs CMD as root in it, as in a chroot on a running
# machine: /proc, /sys and /dev are there, systemd is not. Debs that apt gets are kept for the next time.
in_system() {
	local system=$1 binds=()
	shift
	while [ "$1" != -- ]; do binds+=("$1"); shift; done
	shift
	deb_base
	mkdir -p "$system"/{upper,work,root} "$CACHE/deb-archives/partial"
	# shellcheck disable=SC2016
	unshare --mount --propagation=private -- bash -euc '
		base=$1 system=$2 root=$2/root; shift 2
		if [ -e "$system/disk" ]; then
			# Barriers and syncs would only cost time: nobody pulls the plug here.
			mount -o loop,barrier=0 "$system/disk" "$root"
		else
			rm -rf "$system/work/work/incompat"
			mount -t overlay overlay -o "volatile,lowerdir=$base,upperdir=$system/upper,workdir=$system/work" "$root"
		fi
		mount -t proc proc "$root/proc"
		mount -t sysfs -o ro sysfs "$root/sys"
		mount --rbind /dev "$root/dev"
		mount -t tmpfs tmpfs "$root/run"
		mount -t tmpfs tmpfs "$root/mnt"
		while [ "$1" != -- ]; do
			IFS=: read -r source target <<<"$1"
			mkdir -p "$root$target"
			mount --bind "$source" "$root$target"
			shift
		done
		shift
		exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
			LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"' - \
		"$ENTRY/root" "$system" "$CACHE/deb-archives:/var/cache/apt/archives" ${binds[@]+"${binds[@]}"} -- "$@"
}

# make_bootable SYSTEM: gives it a root disk, on which it is from now on. At boot it runs $share/run.
make_bootable() {
	local etc=$1/upper/etc unit
	mkdir -p "$1/upper/"{host,var/log/journal,etc/systemd/system/multi-user.target.wants}
	cat >"$etc/systemd/system/deb-test.service" <<-'END'
		[Unit]
		Description=The test
		After=multi-user.target
		RequiresMountsFor=/host
		[Service]
		Type=oneshot
		TimeoutStartSec=infinity
		ExecStart=/bin/bash -c '/bin/bash /host/run >/host/out 2>&1; echo $? >/host/status; sync'
		ExecStart=/usr/bin/systemctl --no-block poweroff
	END
	ln -sf ../deb-test.service "$etc/systemd/system/multi-user.target.wants/"
	{
		echo 'LABEL=root / ext4 errors=remount-ro 0 1'
		echo 'host /host 9p trans=virtio,version=9p2000.L,msize=131072 0 0'
		[ ! -e "$etc/fstab" ] || grep -v '^#' "$etc/fstab" || :
	} >"$etc/fstab.new"
	mv "$etc/fstab.new" "$etc/fstab"
	echo guest >"$etc/hostname"
	printf '127.0.0.1 localhost guest\n' >"$etc/hosts"
	# Nothing that these tests don't need, for the sake of time.
	for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_reap.service \
		getty@tty1.service serial-getty@ttyS0.service; do
		ln -sf /dev/null "$etc/systemd/system/$unit"
	done
	truncate -s 6G "$1/disk.new"
	deb_base
	# shellcheck disable=SC2016
	unshare --mount --propagation=private -- bash -euc '
		rm -rf "$2/work/work/incompat"
		mount -t overlay overlay -o "volatile,lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
		mke2fs -q -t ext4 -L root -E root_owner=0:0 -d "$2/root" "$2/disk.new"' - "$ENTRY/root" "$1"
	mv "$1/disk.new" "$1/disk"
}

# boot SYSTEM KVER SECONDS [QEMU-ARGUMENT...]: boots it and waits for its end. The console goes to
# $dir/console; the emulated machine is slow, so systemd has to be patient. $APPEND is added to the kernel's command line.
boot() {
	local system=$1 kver=$2 seconds=$3 status=0
	shift 3
	mkdir -p "$system/boot"
	in_system "$system" "$system/boot:/mnt/boot" -- cp "/boot/vmlinuz-$kver" "/boot/initrd.img-$kver" /mnt/boot/
	emulator
	timeout --kill-after=10 "$seconds" "${EMULATOR[@]}" -name bdsnap-deb -nodefaults -no-user-config -display none -no-reboot \
		-M q35 -accel tcg,thread=single -cpu max -smp 2 -m 1024 -kernel "$system/boot/vmlinuz-$kver" -initrd "$system/boot/initrd.img-$kver" \
		-append "root=LABEL=root ro console=ttyS0 loglevel=5 systemd.show_status=false systemd.condition_needs_update=0 panic=-1 oops=panic \
			systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=600 ${APPEND:-}" -serial "file:$dir/console" \
		-drive "if=none,id=root,format=raw,file=$system/disk,cache=unsafe" -device virtio-blk-pci,drive=root,serial=root \
		-virtfs "local,path=$share,mount_tag=host,security_model=none,multidevs=remap" "$@" </dev/null || status=$?
	if [ $status != 0 ]; then
		echo "QEMU: status $status; the end of the console:" >&2
		tail -n 30 "$dir/console" >&2
	fi
	return $status
}

# ---- For the cases ----

# make_repository [OPTION...]: sets `repository`; options are those of build-deb. $BDSNAP_DEBS is a
# folder with packages that are there already.
make_repository() {
	repository=${BDSNAP_DEBS:-$("$top/scripts/build-deb" --suite "$DEB_SUITE" "$@" | tail -n 1)}
	[ -e "$repository/Packages" ] || not_ok "the packages are built"
}
# borrow_parts DIR: those that the rig has made for the same kernels
borrow_parts() {
	local kver own
	for kver in "$OLD_KVER" ${NEW_KVER:+"$NEW_KVER"}; do
		own=$CACHE/kbuild/$kver
		if [ -e "$own/.stamp" ] && [ ! -e "$1/$kver" ]; then
			cp -a "$own" "$1/.borrowed"
			sed -i "s,^KBUILD_OUTPUT=.*,KBUILD_OUTPUT=/var/cache/bdsnap/kbuild/$kver," "$1/.borrowed/Makefile"
			mv -T "$1/.borrowed" "$1/$kver"
		fi
	done
}
# apt SYSTEM ARGUMENT...: apt-get with the repository; its output is in $dir/apt. The kernels' Rust parts,
# which take minutes to compile, are kept for the next time; rust-kbuild sees whether they fit, as it does
# when bdsnap is upgraded. BDSNAP_COLD=1 does without.
apt() {
	local system=$1
	shift
	# shellcheck disable=SC2016
	local parts=$CACHE/deb-kbuild
	[ -z "${BDSNAP_COLD:-}" ] || parts=$system/parts
	mkdir -p "$parts"
	if [ -z "${BDSNAP_COLD:-}" ]; then borrow_parts "$parts"; fi
	in_system "$system" "$repository:/mnt/repo" "$parts:/mnt/parts" -- sh -euc '
		cache=/var/cache/bdsnap/kbuild
		# copy FROM TO: what is whole, and not there yet
		copy() {
			for part in "$1"/*; do
				if [ -e "$part/.stamp" ] && [ ! -e "$2/${part##*/}" ]; then
					cp -a "$part" "$2/.copy.$$" && mv -T "$2/.copy.$$" "$2/${part##*/}" || rm -rf "$2/.copy.$$"
				fi
			done
		}
		mkdir -p "$cache"
		copy /mnt/parts "$cache"
		echo "deb [trusted=yes] file:/mnt/repo ./" >/etc/apt/sources.list.d/bdsnap.list
		cp /mnt/repo/bdsnap.pref /etc/apt/preferences.d/
		apt-get -q -o Acquire::Languages=none update
		apt-get -qy -o APT::Keep-Downloaded-Packages=true -o APT::Install-Recommends=true \
			-o Dpkg::Options::=--force-unsafe-io "$@"
		copy "$cache" /mnt/parts' - "$@" >"$dir/apt" 2>&1 || {
		tail -n 40 "$dir/apt" >&2
		return 1
	}
}
# set_up: as a user would, and makes it bootable: /data and /plug are listed, /snapshot is a mount of its own.
# What is on /data's disk is in $dir/before.
DATA_UUID=11111111-2222-4333-8444-555555555555
set_up() {
	local n
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
}
# nothing_left: after a purge
nothing_left() {
	# What was a service's own /var/tmp, systemd removes in its own time, at the next boot at the latest.
	is "purged, only the store is left" /snapshot/.bdsnap-store "$(in_system "$system" -- find / -xdev \
		\( -path /proc -o -path /var/lib/apt -o -path /var/log -o -path /etc/apt -o -path '/var/tmp/systemd-private-*' \) \
		-prune -o -iname '*bdsnap*' -print | paste -sd ' ')"
}
# said NAME PATTERN: by the last `apt`
said() { if grep -q -- "$2" "$dir/apt"; then ok "$1"; else not_ok "$1: no '$2' in: $(grep bdsnap "$dir/apt")"; fi; }
# answers NAME PATTERN COMMAND: run in the system
answers() {
	local text
	text=$(in_system "$system" -- sh -c "$3" 2>&1) || :
	if grep -qE -- "$2" <<<"$text"; then ok "$1"; else not_ok "$1: no '$2' in: $text"; fi
}
# booted NAME KVER SECONDS SCRIPT [QEMU-ARGUMENT...]: boots the system with the other disks of the case,
# and takes the results of tests/deb/guest/SCRIPT
booted() {
	local name=$1 kver=$2 seconds=$3 script=$4 arguments=() id status=0
	shift 4
	rm -f "$share/status" "$share/out"
	cp "$top/tests/deb/guest/"* "$share/"
	printf '%s\n' "export KVER=$kver DATA_UUID=${DATA_UUID:-}" ". /host/$script" >"$share/run"
	for id in data store plug lvm; do
		[ ! -e "$dir/$id" ] || arguments+=(-drive "if=none,id=$id,format=raw,file=$dir/$id,cache=unsafe"
			-device "virtio-blk-pci,drive=$id,serial=$id")
	done
	boot "$system" "$kver" "$seconds" ${arguments[@]+"${arguments[@]}"} "$@" || status=$?
	touch "$share/out"
	cat "$share/out"
	if grep -q '^not ok ' "$share/out"; then failed=1; fi
	is "$name" "0 0" "$status $(cat "$share/status" 2>/dev/null)"
	if grep -aE 'Oops|BUG:|WARNING: |Kernel panic|blocked for more' "$dir/console" >&2; then not_ok "$name: the kernel complained"; fi
	if [ $failed != 0 ] && [ -n "${BDSNAP_KEEP:-}" ]; then cp "$dir/console" "$dir/console.$script"; fi
}
