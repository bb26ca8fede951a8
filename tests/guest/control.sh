#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The control interface: right and wrong calls, by system call and by ioctl, on /dev/vda and vdb.

. "$(dirname "$0")/lib.sh"
good='s:correct horse'

# expect NAME RESULTS COMMAND...: RESULTS as in EINVAL|EFAULT
expect() {
	local name=$1 results=$2 got
	shift 2
	got=$("$@") || got="status $?"
	if [[ "|$results|" = *"|$got|"* ]]; then ok "$name: $got"; else not_ok "$name: expected $results, got $got"; fi
}
by_call() { bdsnap-testtool call 174 "$@"; }
off_by_call() { bdsnap-testtool call 177 "$@"; }
by_ioctl() { bdsnap-testtool ioctl activate "$@"; }
off_by_ioctl() { bdsnap-testtool ioctl deactivate "$@"; }

# ---- Without a module, and without a password ----

expect "174 without the module" ENOSYS by_call s:/dev/vda "$good"
try bdsnap status
is "status without the module" 3 $code
modprobe bdsnap || not_ok "a load without a password"
for how in by_call by_ioctl; do expect "$how without a secret" EACCES $how s:/dev/vda "$good"; done
is "the status says that there is none" false "$(status module.secret)"
rmmod bdsnap
for text in nonsense bdsnap1:pbkdf2-sha256:0:00:00 "bdsnap1:pbkdf2-sha256:10000:$(printf '%0600d' 0):00" ''; do
	mkdir -p /etc/bdsnap
	(umask 077 && echo "$text" >/etc/bdsnap/secret)
	modprobe bdsnap
	expect "an unusable secret (${text:0:20})" EACCES by_call s:/dev/vda "$good"
	rmmod bdsnap || not_ok "rmmod after an unusable secret"
done
rm /etc/bdsnap/secret
load
is "secret" 600 "$(stat -c %a /etc/bdsnap/secret)"
is "/dev/bdsnap" 600 "$(stat -c %a /dev/bdsnap)"
is "no secret in the log" 0 "$(dmesg | grep -c 'correct horse')"
is "none in the parameters" 0 "$(grep -rls 'correct horse' /sys/module/bdsnap | wc -l)"

# ---- Which module runs ----

installed=$(modinfo -n bdsnap)
cp "$installed" "$work/as-built"
try bdsnap status --check
is "the module that runs is the installed one" "0 false" "$code $(status module.outdated)"
echo "a signature would be here" >>"$installed"
is "so it is when it is signed" false "$(status module.outdated)"
# What the linker called it is in a note: type 3, of 20 bytes.
at=$(LC_ALL=C grep -obUaP '\x04\x00{3}\x14\x00{3}\x03\x00{3}GNU\x00' "$installed" | head -n 1 | cut -d : -f 1)
bdsnap-testtool flip "$installed" $((${at:-0} + 20))
try bdsnap status --check --quiet
is "another one is installed" "1 true" "$code $(status module.outdated)"
is "the check says what helps" 1 "$(grep -c "not the one that is installed.*run 'bdsnap reload'" <<<"$out")"
is "so does the status" 1 "$(bdsnap status | grep -c "^upgraded .*run 'bdsnap reload'")"
is "and --line" "1 1" "$(bdsnap status --line --check | grep -c "run 'bdsnap reload'") $(bdsnap status --prometheus - | sed -n 's/^bdsnap_problems //p')"
echo "no module" >"$installed"
try bdsnap status --check
is "one that cannot be read is not called another" "0 null" "$code $(bdsnap status --json | sed -n 's/.*"outdated": \([a-z]*\).*/\1/p')"
cp "$work/as-built" "$installed"

# ---- Names, passwords and pointers ----

long=/dev
while [ ${#long} -lt 4090 ]; do long+=/abcde; done
long=${long:0:4094}z
store=$(findmnt -n -o SOURCE /snapshot)
mkfifo "$work/fifo"
cd /dev || exit
for how in by_call off_by_call by_ioctl off_by_ioctl; do
	case $how in
	*call) null=EINVAL ;;
	*) null='EINVAL|EFAULT' ;;
	esac
	expect "$how: name NULL" "$null" $how null "$good"
	expect "$how: password NULL" "$null|EACCES" $how s:/dev/vda null
	for pointer in low kernel edge:100; do
		expect "$how: name at a bad address ($pointer)" EFAULT $how $pointer "$good"
		expect "$how: password at a bad address ($pointer)" EFAULT $how s:/dev/vda $pointer
	done
	expect "$how: empty name" EINVAL $how s: "$good"
	expect "$how: name of 4096" ENAMETOOLONG $how len:4096 "$good"
	expect "$how: name of 100000" ENAMETOOLONG $how len:100000 "$good"
	expect "$how: name of 4095" 0 $how "s:$long" "$good"
	expect "$how: password of 256" ENAMETOOLONG $how s:/dev/vda len:256
	expect "$how: password of 100000" ENAMETOOLONG $how s:/dev/vda len:100000
	expect "$how: not UTF-8, absent" 0 $how hex:2f6465762ffffe80 "$good"
	expect "$how: absent" 0 $how s:/dev/no-such-disk "$good"
	for name in /dev/null /etc /snapshot/ "$work/fifo" /etc/passwd/x; do
		expect "$how: $name" EINVAL $how "s:$name" "$good"
	done
	[[ $how = off* ]] || expect "$how: the disk of the store" EINVAL $how "s:$store" "$good"
	expect "$how: relative" 0 $how s:vda "$good"
	expect "$how: again" 0 $how s:/dev/vda "$good"
	case $how in
	off*) is "$how: nothing is registered" 0 "$(status 'devices.#')" ;;
	*)
		expect "$how: again by another way" 0 $how s:../dev/./vda "$good"
		ln -sf vda "$work/link"
		ln -sf /dev/vda "$work/link"
		expect "$how: again by a link" 0 $how "s:$work/link" "$good"
		is "$how: registered, each once" 4 "$(status 'devices.#')"
		is "$how: the relative one has its whole name" 1 "$(bdsnap status --json | grep -c '"device": "/dev/vda"')"
		;;
	esac
done
for how in by_ioctl off_by_ioctl; do
	expect "$how: a NUL in the name" EINVAL $how hex:2f6465762f76646100ff "$good"
	for version in 0 2 4294967295; do expect "$how: version $version" EPROTONOSUPPORT $how s:/dev/vda "$good" $version; done
done
cd /

# ---- Numbers ----

for command in 0 bdff bd01 c008bd09 4008bd05 8030bd01 ffffffff c030bd08 c030bd00 5401; do
	expect "ioctl $command" ENOTTY bdsnap-testtool ioctl-raw $command zeros
done
for command in c030bd01 c030bd02 c040bd03 c008bd04 c020bd05 c030bd06 c0c0bd07; do
	for pointer in null low kernel; do
		expect "ioctl $command with a bad address ($pointer)" EFAULT bdsnap-testtool ioctl-raw $command $pointer
	done
	expect "ioctl $command of version 0" EPROTONOSUPPORT bdsnap-testtool ioctl-raw $command zeros
done
expect "hand-over again" EALREADY bdsnap-testtool ioctl-raw c040bd03 one
expect "settle" 0 bdsnap-testtool ioctl-raw c008bd04 one
expect "status without a buffer" 0 bdsnap-testtool ioctl-raw c020bd05 one
expect "restore of no name" EINVAL bdsnap-testtool ioctl-raw c030bd06 one
# Of programs that know less or more of the structures
expect "too short for a version" EPROTONOSUPPORT bdsnap-testtool ioctl-raw c000bd04 one
expect "as short as the version" 0 bdsnap-testtool ioctl-raw c004bd04 one
expect "a shorter control" EINVAL bdsnap-testtool ioctl-raw c008bd01 one
expect "a shorter status" 0 bdsnap-testtool ioctl-raw c018bd05 one
expect "a longer status, with nothing beyond" 0 bdsnap-testtool ioctl-raw c400bd05 one
for command in c030bd01 c030bd02 c040bd03 c008bd04 c020bd05 c030bd06; do
	len=$((0x${command:1:3})) nr=${command:6}
	at=$(printf c%03xbd%s $((len + 8)) "$nr")
	expect "ioctl $at with something beyond $len bytes" E2BIG bdsnap-testtool ioctl-raw "$at" "beyond:$len"
	expect "ioctl $at, with something beyond that" \
		"$(bdsnap-testtool ioctl-raw "$command" one)" bdsnap-testtool ioctl-raw "$at" "beyond:$((len + 8))"
done
for nr in 156 178 180 183 214 387 600 100000; do
	expect "system call $nr" ENOSYS bdsnap-testtool call $nr s:/dev/vda "$good"
done
try bdsnap-testtool call32 174
if [ $code -gt 128 ]; then
	skip "32-bit calls: the kernel has none"
	calls32=
else
	is "32-bit call 174 is what it was" EINVAL "$out"
	calls32=1
fi
handover=$(find /usr/libexec/bdsnap /usr/bin -name 'bdsnap-handover*' | head -n 1)
try "$handover"
is "a second hand-over" "bdsnap-handover: the hand-over took place before" "$out"

# ---- Privilege ----

no_admin() { setpriv --bounding-set=-sys_admin "$@"; }
user() { setpriv --reuid=1000 --regid=1000 --clear-groups "$@"; }
contained() { unshare --user --map-root-user "$@"; }
for who in no_admin user contained; do
	for nr in 174 177; do
		expect "$who: $nr" EPERM $who bdsnap-testtool call $nr s:/dev/vda "$good"
		expect "$who: $nr with bad pointers" EPERM $who bdsnap-testtool call $nr low kernel
	done
done
for who in no_admin contained; do
	for what in activate deactivate; do expect "$who: $what" EPERM $who bdsnap-testtool ioctl $what s:/dev/vda "$good"; done
	expect "$who: any ioctl" EPERM $who bdsnap-testtool ioctl-raw c020bd05 zeros
done
try user bdsnap-testtool ioctl activate s:/dev/vda "$good"
is "user: cannot open the device" 1 $code
is "nothing is registered still" 0 "$(status 'devices.#')"

# ---- Wrong passwords ----

must "no failure so far" 0 "$(status module.auth_failures)"
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
began=$(milliseconds)
for wrong in 's:wrong' 's:' 's:correct hors'; do expect "wrong password ($wrong)" EACCES by_call s:/dev/vda "$wrong"; done
atleast "and each has its price (ms)" 2900 $(($(milliseconds) - began))
expect "too many" EAGAIN by_call s:/dev/vda "$good"
expect "too many, by ioctl" EAGAIN by_ioctl s:/dev/vda "s:wrong"
is "counted" 3 "$(status module.auth_failures)"
is "and logged, without the password" 3 "$(dmesg | grep -c 'bdsnap: wrong password')"
dmesg | grep -q 'correct hors' && not_ok "the log has a wrong password"
sleep 4.5
expect "after a while" 0 by_call s:/dev/vda "$good"
is "registered at last" 1 "$(status 'devices.#')"
echo wrong >"$work/wrong"
try bdsnap deactivate /dev/vda --password-file "$work/wrong"
is "the tool with a wrong password" 1 $code
sleep 1
try bdsnap deactivate /dev/vda --password-file "$password" --via syscall
is "the tool by system call" 0 $code

# ---- Many at once ----

for i in 1 2 3 4 5 6; do
	{
		by_call s:/dev/vda "$good"
		off_by_ioctl s:/dev/vda "$good"
		by_ioctl s:/dev/vdb "$good"
		bdsnap status --json >/dev/null || echo "status failed"
		off_by_call s:/dev/vdb "$good"
	} >"$work/many.$i" &
done
wait
is "many at once" "24 0" "$(sort "$work"/many.* | uniq -c | xargs)"

# ---- Other numbers ----

rmmod bdsnap
load sysc_activate=387 sysc_deactivate=388
expect "387" 0 bdsnap-testtool call 387 s:/dev/vda "$good"
expect "174 now" ENOSYS by_call s:/dev/vda "$good"
if [ $calls32 ]; then
	# Neither has a meaning for 32-bit programs.
	for nr in 387 388; do expect "32-bit call $nr" ENOSYS bdsnap-testtool call32 $nr; done
fi
is "still registered" 1 "$(status 'devices.#')"
expect "388" 0 bdsnap-testtool call 388 s:/dev/vda "$good"
rmmod bdsnap
for parameter in sysc_activate=1 sysc_deactivate=174 chunk_size=5000 chunk_size=512 durability=0 discard=7 hold_timeout_ms=0; do
	try modprobe bdsnap $parameter
	is "parameter $parameter is refused" 1 $code
	rmmod bdsnap 2>/dev/null
done
load sysc_activate=0 sysc_deactivate=0
expect "174 when there is none" ENOSYS by_call s:/dev/vda "$good"
expect "the device serves alone" 0 by_ioctl s:/dev/vda "$good"
complete
