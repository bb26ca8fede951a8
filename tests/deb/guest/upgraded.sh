# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The boot into a kernel that came by an upgrade.

# shellcheck source=lib.sh
. /host/lib.sh

is "the new kernel runs" "$KVER" "$(uname -r)"
is "no unit has failed" "" "$(failed_units)"
records "/data is recorded, with no hand laid on" /data
records "so is a logical volume" /lv
records "so is an image in a loop device" /image
has "the session before was closed by the shutdown" 'mount +closed' "$(bdsnap list /data)"
has "the status names kernels without a module, and why" \
	'kernel 6.12.*has no module: it is older than Linux 7.2' "$(bdsnap status)"
hasnt "no session is broken" broken "$(bdsnap list)"
is "status --check is content" 0 "$(bdsnap status --check >/dev/null 2>&1; echo $?)"

# ---- Back to before the first boot, over two sessions, a shutdown and another kernel ----

umount /data
bdsnap-restore "/dev/disk/by-uuid/$DATA_UUID" "$(cat /host/session)" --yes --accept-gap
is "the device is restored" 0 $?

# ---- Pruned by the unit, as its timer does it ----

is "the timer waits" active "$(systemctl is-active bdsnap-prune.timer)"
has "without rules it removes nothing" '0 sessions removed' "$(systemctl start bdsnap-prune.service; journalctl --no-pager -b -u bdsnap-prune)"
mkdir -p /etc/bdsnap/conf.d
printf '%s\n' '[prune]' 'keep_last = 1' 'min_age = "0s"' 'trash = "0"' >/etc/bdsnap/conf.d/test.toml
before=$(bdsnap list "/dev/disk/by-uuid/$DATA_UUID" --json | grep -o '"session_id"' | wc -l)
systemctl start bdsnap-prune.service
is "with a rule it does its work" 0 $?
after=$(bdsnap list "/dev/disk/by-uuid/$DATA_UUID" --json | grep -o '"session_id"' | wc -l)
is "one session is left of several" "yes 1" "$([ "$before" -gt 1 ] && echo yes) $after"
has "and tells it" '[1-9][0-9]* sessions? removed' "$(journalctl --no-pager -b -u bdsnap-prune)"
for unit in bdsnap-prune bdsnap-store bdsnap; do
	echo "# systemd-analyze security $unit: $(systemd-analyze security --no-pager "$unit.service" | tail -n 1)"
done
systemd-analyze security --no-pager --threshold=25 bdsnap-prune.service >/dev/null
is "the prune service's exposure is at most 2.5" 0 $?

# ---- While the secret is on its way, nobody sees it in arguments and environments ----

umount /lv /image
IFS=: read -r _ _ _ salt hash </etc/bdsnap/secret
printf '%s\n' "$salt" "$hash" "correct horse" >/run/patterns
(
	while [ ! -e /run/enough ]; do
		grep -alFf /run/patterns /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null
		echo . >>/run/looks
	done
) >/run/seen &
# Whoever asks for the status holds the module, and so does the last of a session.
sleep 3 3<>/dev/bdsnap &
bdsnap reload
is "the module is loaded again" 0 $?
echo "correct horse" >/run/password
bdsnap deactivate "/dev/disk/by-uuid/$DATA_UUID" --password-file /run/password && bdsnap activate "/dev/disk/by-uuid/$DATA_UUID" --password-file /run/password
is "the password is right" 0 $?
touch /run/enough
wait
echo "# looked $(wc -l </run/looks) times"
is "the secret was seen by none of many looks" "" "$(cat /run/seen)"
