#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# /dev/mapper/origin is on /dev/vda, and slow where that helps. /dev/vdb has no partitions.

. "$(dirname "$0")/lib.sh"

device=/dev/mapper/origin
# newest FIELD: of the newest session
newest() { bdsnap list --json $device | jq -r ".sessions[-1].$1"; }
# slow READ WRITE: that many milliseconds; fast
slow() { switch origin "0 $sectors delay /dev/vda 0 $1 /dev/vda 0 $2" || not_ok "slow"; }
fast() { switch origin "0 $sectors linear /dev/vda 0" || not_ok "fast"; }
tenths() { awk '{ print int($1 * 10) }' /proc/uptime; }
# raw MIB SEEK: so much is written to it, in a raw session that has ended then
raw() {
	dd if=/dev/urandom of=$device bs=1M count="$1" seek="$2" conv=notrunc oflag=direct status=none || not_ok "raw writes"
	bdsnap settle --raw || not_ok "settle"
}

random 32 /dev/vda
sync
sectors=$(blockdev --getsz /dev/vda)
dmsetup create origin --table "0 $sectors linear /dev/vda 0" || die "dmsetup"
dmsetup mknodes
# A write at the gate would pass after half of this.
load raw_idle_s=2 hold_timeout_ms=40000
activate $device

# ---- The module is the last to close the device ----

copy $device close.0
random 1 "$work/late"
# Each read takes its time, so also the look at what was left, for which the module opens the device soon after the last
# write.
slow 4000 0
dd if=/dev/urandom of=$device bs=4k seek=100 count=1 conv=notrunc oflag=direct status=none
must "a raw session runs" true "$(status devices.0.raw)"
openers() { dmsetup info -c --noheadings -o open origin; }
for ((i = 0; i < 100; i++)); do
	[ "$(openers)" = 0 ] || break
	sleep 0.05
done
must "the module has it open" 1 "$(openers)"
# Nobody waits for what this leaves in the page cache.
dd if="$work/late" of=$device bs=1M seek=16 conv=notrunc status=none || not_ok "a buffered write"
must "and still has" 1 "$(openers)"
written() { dd if=/dev/vda bs=1M skip=16 count=1 iflag=direct status=none | cmp -s - "$work/late"; }
if written; then not_ok "it is not in the page cache only"; fi
fast
since=$(tenths)
for ((i = 0; i < 400; i++)); do
	if written; then break; fi
	sleep 0.1
done
if written; then ok "what was left in the page cache is written"; else not_ok "what was left in the page cache is not written"; fi
atmost "and soon, in tenths of a second" 60 $(($(tenths) - since))
bdsnap settle --raw || not_ok "settle"
copy $device close.1
is "nothing passed unseen" 0 "$(dmesg | grep -c 'pass unseen')"
is "no gap" none "$(bdsnap list --json $device | jq -r '[.sessions[].gap_before] | unique | join(" ")')"
try bdsnap-restore $device "$(bdsnap list --json $device | jq -r '.sessions[0].name')" --yes
is "restore" 0 $code
copy $device close.2

# ---- Whoever has the disk's lock waits for what is held ----

# sync(2) waits for the pages of a device with the lock that also who opens it takes.
copy $device locked.0
slow 200 0
for round in "starts a session" "meets one"; do
	exec 4<>$device
	dd if=/dev/urandom bs=64k count=16 iflag=fullblock status=none >&4 || not_ok "a buffered write"
	since=$(tenths)
	sync
	atmost "sync of a write that $round, in tenths of a second" 100 $(($(tenths) - since))
	dd if=/dev/urandom bs=64k count=16 iflag=fullblock status=none >&4 || not_ok "a buffered write"
	since=$(tenths)
	sync $device
	exec 4>&-
	atmost "closing after it, in tenths of a second" 100 $(($(tenths) - since))
done
fast
bdsnap settle --raw || not_ok "settle"
is "one session, whole" "closed none" "$(newest state) $(newest gap_before)"
copy $device locked.1
try bdsnap-restore $device latest --yes
is "restore to before it" 0 $code
copy $device locked.2

# So does whoever has the partition table read anew.
random 8 /dev/vdb
sync
activate /dev/vdb
copy /dev/vdb table.0
for round in "starts a session" "meets one"; do
	exec 4<>/dev/vdb
	[ "$round" = "starts a session" ] || dd bs=1M count=1 status=none of=/dev/null <&4
	dd if=/dev/urandom bs=64k count=16 iflag=fullblock status=none >&4 || not_ok "a buffered write"
	since=$(tenths)
	blockdev --rereadpt /dev/vdb || not_ok "rereadpt"
	atmost "the partition table read anew with a write that $round, in tenths of a second" 100 $(($(tenths) - since))
	exec 4>&-
done
bdsnap settle --raw || not_ok "settle"
is "one session, whole" "1 closed" "$(bdsnap list --json /dev/vdb | jq -r '"\(.sessions | length) \(.sessions[-1].state)"')"
copy /dev/vdb table.1
try bdsnap-restore /dev/vdb latest --yes
is "restore to before it" 0 $code
copy /dev/vdb table.2
deactivate /dev/vdb

# ---- Others write while a restore does ----

# restore HOW: to the newest session; `beside`: as soon as it writes, somebody else does. Sets `code` and `said`.
restore() {
	local i line child flying other=''
	mkfifo "$work/lines"
	bdsnap-restore $device latest --yes --json-lines >"$work/lines" 2>"$work/errors" &
	child=$!
	: >"$work/said"
	while read -r line; do
		echo "$line" >>"$work/said"
		[[ $1 = beside && -z $other && $line = *'"phase":"restore"'* ]] || continue
		# Not before the module knows that it writes
		for ((i = 0; i < 100; i++)); do
			read -r _ flying </sys/block/dm-0/inflight
			[ "$flying" = 0 ] || break
			sleep 0.05
		done
		dd if=/dev/urandom of=$device bs=64k seek=450 count=1 conv=notrunc oflag=direct status=none & other=$!
	done <"$work/lines"
	code=0
	wait $child || code=$?
	said=$(cat "$work/said" "$work/errors")
	echo "+ bdsnap-restore, $1 -> $code"
	echo "$said"
	rm "$work/lines"
	[ "$1" = alone ] && return
	if [ -n "$other" ]; then wait $other || not_ok "the other's write"; else not_ok "the restore has not written"; fi
}

copy $device alone.0
raw 4 4
slow 0 1500
restore alone
is "an undisturbed restore" 0 $code
must "it says nothing of others" 0 "$(grep -ci 'others wrote' <<<"$said")"
fast
copy $device alone.2
raw 4 4
is "no gap over an undisturbed restore" none "$(newest gap_before)"

# It has to last until the other has come, on a busy machine too.
slow 0 5000
restore beside
is "a restore beside which others write" 6 $code
differ "it says so" 0 "$(grep -ci 'others wrote' <<<"$said")"
fast
raw 1 8
is "the next session knows" written "$(newest gap_before)"
deactivate $device
dmsetup remove origin
complete
