# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The machine goes from one kernel to the next by kexec, in a session: the first kernel's part, then the
# second's.

# shellcheck source=lib.sh
. /host/lib.sh

if [ ! -e /host/kexec ]; then
	echo "kexec $(cat /proc/sys/kernel/random/boot_id)" >/host/kexec
	records "/data is recorded" /data
	echo kexec >/data/kexec
	sync
	sed 's/^/  /' /host/out >&2
	kexec -l "/boot/vmlinuz-$KVER" --initrd="/boot/initrd.img-$KVER" --reuse-cmdline || not_ok "kexec -l"
	cp /host/out /host/out.before
	systemctl --no-block kexec
	sleep infinity
fi
cat /host/out.before
is "another boot, without the firmware" different \
	"$([ "$(cat /host/kexec)" = "kexec $(cat /proc/sys/kernel/random/boot_id)" ] || echo different)"
rm /host/kexec
has "the session was closed before kexec" 'mount +closed' "$(bdsnap list /data)"
records "/data is recorded again" /data
is "no unit has failed" "" "$(failed_units)"
