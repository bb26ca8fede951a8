# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The first boot after the installation: /etc/fstab mounts /snapshot and /data, which is a listed device;
# /plug is an automount of one that is plugged in later.

# shellcheck source=lib.sh
. /host/lib.sh

is "the module is loaded by the boot" yes "$(test -e /dev/bdsnap && echo yes)"
is "no unit has failed" "" "$(failed_units)"
records "/data is recorded from its mount at boot on" /data
fsck=systemd-fsck@$(systemd-escape --path "/dev/disk/by-uuid/$DATA_UUID").service
order "registered, then checked, then mounted" "$(when ActiveEnterTimestampMonotonic bdsnap.service)" \
	"$(when ExecMainStartTimestampMonotonic "$fsck")" "$(when ActiveEnterTimestampMonotonic data.mount)"
order "the store is made before the device is checked" "$(when ActiveEnterTimestampMonotonic bdsnap-store.service)" \
	"$(when ExecMainStartTimestampMonotonic "$fsck")"
order "the store is mounted before the device" "$(when ActiveEnterTimestampMonotonic snapshot.mount)" \
	"$(when InactiveExitTimestampMonotonic data.mount)"
has "the unit says what it did" 'listed devices? registered' "$(systemctl status bdsnap.service 2>&1)"
has "the settings in bdsnap.toml are the module's" '"min_free_bytes": ?17825792' "$(bdsnap status --json)"

# ---- The secret is seen nowhere ----

IFS=: read -r _ _ _ salt hash </etc/bdsnap/secret
pattern="$salt|$hash|correct horse"
hasnt "not in the kernel log" "$pattern" "$(dmesg)"
hasnt "not in the journal" "$pattern" "$(journalctl -b --no-pager)"
hasnt "not in sysfs" "$pattern" "$(grep -ahr . /sys/module/bdsnap /sys/class/misc/bdsnap/ 2>/dev/null)"
hasnt "not in what udev and systemd keep" "$pattern" "$(udevadm info --export-db; systemctl show 'bdsnap*')"
hasnt "not in arguments and environments" "$pattern" \
	"$(for pid in /proc/[0-9]*; do [ "${pid#/proc/}" = $$ ] || tr '\0' ' ' <"$pid/cmdline"; tr '\0' ' ' <"$pid/environ"; done 2>/dev/null)"
is "the secret's mode" 600 "$(stat -c %a /etc/bdsnap/secret)"

# ---- Plugged in: an automount unit waits for the device and mounts it at once ----

plug=$(readlink -f /dev/disk/by-id/virtio-plug)
pci=$(readlink -f "/sys/block/${plug##*/}/device/..")
echo 1 >"$pci/remove"
udevadm settle
is "the device is unplugged" "" "$(find /dev/disk/by-id -name virtio-plug)"
(sleep 5; echo 1 >/sys/bus/pci/rescan) &
ls /plug >/dev/null
is "the automount has mounted it" ext4 "$(findmnt -n -t ext4 -o FSTYPE /plug)"
records "a device that was plugged in is recorded from its mount on" /plug
echo plugged >/plug/file
umount /plug
wait

# ---- For the next boot: a logical volume and an image, listed and in fstab ----

pvcreate -q /dev/disk/by-id/virtio-lvm >/dev/null && vgcreate -q vg0 /dev/disk/by-id/virtio-lvm >/dev/null &&
	lvcreate -q -y -l 50%FREE -n lv0 vg0 >/dev/null && mkfs.ext4 -q /dev/vg0/lv0 || not_ok "a logical volume"
truncate -s 32M /srv/image && mkfs.ext4 -q /srv/image
printf '%s\n' /dev/vg0/lv0 /srv/image >>/etc/bdsnap/devices
mkdir -p /lv /image
printf '%s\n' '/dev/vg0/lv0 /lv ext4 defaults 0 2' '/srv/image /image ext4 loop 0 0' >>/etc/fstab

# ---- The main job ----

sha256sum /data/[0-9]* >/host/files
for file in /data/[0-9]*; do dd if=/dev/urandom of="$file" bs=64k count=3 conv=notrunc status=none; done
rm -f /data/1
cp -r /usr/share/zoneinfo /data/ 2>/dev/null || cp -r /etc /data/
sync
hasnt "no session is broken" broken "$(bdsnap list)"
has "the device's writes are saved" 'saved +[1-9]' "$(bdsnap status /data)"
# The oldest session is what fsck wrote before the mount, if it did.
bdsnap list "/dev/disk/by-uuid/$DATA_UUID" --json | grep -oE "[^\"/]+_[0-9]{8}T[0-9]{6}Z(-[0-9]+)?" | sort | head -n 1 >/host/session
