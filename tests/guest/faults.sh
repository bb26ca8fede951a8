#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# faults.sh HOW: allocations of the module's code fail, either the Nth, for each N, or at random. On a
# stock kernel another module makes them fail (tests/rig/provoke/starve.c). On the debug kernel, its own
# fault injection: then what the kernel allocates for the module's code fails as well, and the Nth is
# that of one task. The device is /dev/vda; vdb is one more to register.

. "$(dirname "$0")/lib.sh"
how=$1
debug=/sys/kernel/debug
starve=/sys/module/starve/parameters
if [ ! -e $debug/failslab ]; then insmod /host/starve.ko || die "insmod starve"; fi

set_starve() { echo "$2" >$starve/"$1" || die "starve: $1"; }
set_both() { for kind in failslab fail_page_alloc; do echo "$2" >$debug/$kind/"$1" || die "$kind/$1"; done; }
# The Nth fault counts, whatever the probability; `times` counts the faults down.
quiet() {
	if [ -e $starve ]; then
		for word in nth permille faults; do set_starve $word 0; done
	else
		set_both probability 0
		set_both times 1000000
	fi
}
# faults: how many there were since `quiet`
faults() {
	if [ -e $starve ]; then
		cat $starve/faults
	else
		echo $((2000000 - $(<$debug/failslab/times) - $(<$debug/fail_page_alloc/times)))
	fi
}
# chance PERCENT: of so many allocations
chance() { if [ -e $starve ]; then set_starve permille $(($1 * 10)); else set_both probability "$1"; fi; }
# symbols PATTERN BYTES: the range of the functions with these names, the last one of BYTES
symbols() {
	local first last
	read -r first last < <(awk -v p="$1" '$2 ~ /[tT]/ && $0 ~ p { print $1 }' /proc/kallsyms | sort | sed -n '1p; $p' | paste -sd " ")
	printf '0x%s 0x%x\n' "$first" $((16#$last + $2))
}
# below RANGE [EXCEPT-RANGE]: only what functions there call, directly or not, can fail
below() {
	set_both require-start "$1"
	set_both require-end "$2"
	set_both reject-start "${3:-0}"
	set_both reject-end "${4:-0}"
}
# nth N COMMAND...: the Nth allocation fails
nth() {
	if [ -e $starve ]; then
		set_starve nth "$1"
		shift
		"$@"
	else
		bash -c 'echo $1 >/proc/self/fail-nth && shift && exec "$@"' - "$@"
	fi
}
hash() { dd if="$1" bs=1M iflag=direct status=none | sha256sum; }

if [ ! -e $starve ]; then
	set_both ignore-gfp-wait 0
	echo 0 >$debug/fail_page_alloc/ignore-gfp-highmem
	echo 0 >$debug/fail_page_alloc/min-order
	# These would take the Nth fault from the two above, wherever in the kernel, and do no harm with it.
	for kind in "$debug"/fail_mempool*; do
		echo 1 >"$kind/require-start"
		echo 2 >"$kind/require-end"
	done
	set_both stacktrace-depth 32
	set_both verbose 0
fi
quiet

# ---- Loading ----

bdsnap passwd --password-file "$password" || die "bdsnap passwd"
if [ ! -e $starve ]; then
	# Of the kernel's own, the function that calls a module's start.
	read -r first last < <(symbols ' do_one_initcall$' 2048)
	below "$first" "$last"
fi
# Its own fault injection is of one task: not of those that modprobe's rule for bdsnap starts.
start=(modprobe bdsnap)
[ -e $starve ] || start=(modprobe --ignore-install bdsnap)
failures=0
# There are hundreds on the debug kernel, where each try takes seconds.
for ((n = 1; n <= 600; n += n < 40 ? 1 : 13)); do
	quiet
	nth $n "${start[@]}"
	code=$?
	[ "$(faults)" != 0 ] || break
	if [ $code = 0 ]; then rmmod bdsnap || not_ok "rmmod after fault $n"; else failures=$((failures + 1)); fi
	[ ! -d /sys/module/bdsnap ] || die "loaded although fault $n made it fail"
done
quiet # of a fault that was not reached
atleast "faults while it is loaded" 5 $((n - 1))
atleast "of them, loads that failed" 1 $failures
[ "$code" = 0 ] || not_ok "a load without a fault"
if [ ! -e $starve ]; then # It is the rule that hands over the password.
	rmmod bdsnap || not_ok "rmmod"
	modprobe bdsnap || not_ok "a load by the rule"
fi

read -r first last < <(symbols '[[]bdsnap[]]$' 1024)
if [ -e $starve ]; then
	set_starve end "$last"
	set_starve start "$first"
else
	# What the originals do themselves may fail, and is not ours.
	read -r o_first o_last < <(symbols ' bdsnap_orig_' 64)
	below "$first" "$last" "$o_first" "$o_last"
fi

# ---- Activating and deactivating ----

make_fs ext4 /dev/vda
mount /dev/vda /mnt
random 4 /mnt/file
umount /mnt
sync
dd if=/dev/vda of="$work/image" bs=1M iflag=direct status=none
want=$(hash "$work/image")

activate --durability "$how" /dev/vda || die "activate"
wrong=0
for call in activate deactivate; do
	for ((n = 1; n <= 100; n++)); do
		if [ $call = deactivate ]; then activate /dev/vdb || not_ok "activate before fault $n"; fi
		quiet
		nth $n bdsnap-testtool ioctl $call s:/dev/vdb "s:$(<"$password")" >"$work/out" 2>&1
		result=$(<"$work/out")
		[ "$(faults)" != 0 ] || break
		quiet
		there=$(status 'devices.#')
		case $call:$result:$there in
		activate:ENOMEM:1 | activate:*"(os error 12)":1 | activate:0:2 | deactivate:ENOMEM:2 | deactivate:*"(os error 12)":2 | deactivate:0:1) ;;
		*)
			echo "$call, fault $n: $result, $there devices"
			wrong=$((wrong + 1))
			;;
		esac
		deactivate /dev/vdb >"$work/out" 2>&1
		is_there=$(status 'devices.#')
		[ "$is_there" = 1 ] || not_ok "$call, fault $n: $is_there devices in the end"
	done
	quiet
	atleast "faults in $call" 2 $((n - 1))
	deactivate /dev/vdb >"$work/out" 2>&1
done
is "results of calls with faults that are wrong" 0 $wrong

# ---- A device that comes ----

# A fault while it is bound to its name is no reason not to protect it: there is memory when it is mounted.
make_fs ext4 /dev/vdb
sync
late=$(hash /dev/vdb)
activate --durability "$how" /dev/late || die "activate an absent device"
wrong=0
for ((n = 1; n <= 100; n++)); do
	ln -s vdb /dev/late
	quiet
	nth $n bdsnap settle >"$work/out" 2>&1
	hits=$(faults)
	quiet
	mount /dev/vdb /mnt || not_ok "mount a device that has come"
	echo text >/mnt/file
	umount /mnt
	bdsnap-restore /dev/late latest --yes >"$work/out" 2>&1
	code=$?
	if [ $code != 0 ] || [ "$(hash /dev/vdb)" != "$late" ]; then
		echo "a device that comes, fault $n: restore ends with $code"
		cat "$work/out"
		wrong=$((wrong + 1))
		dd if=/dev/zero of=/dev/vdb bs=1M oflag=direct status=none
		make_fs ext4 /dev/vdb
		sync
		late=$(hash /dev/vdb)
	fi
	bdsnap settle --raw
	rm /dev/late
	bdsnap settle
	rm -rf /snapshot/late*
	[ "$hits" != 0 ] || break
done
atleast "faults in settle" 5 $((n - 1))
is "sessions after them that are wrong" 0 $wrong
deactivate /dev/late || not_ok "deactivate /dev/late"

# ---- Sessions ----

# session NAME COMMAND...: mounts by COMMAND, writes, unmounts, restores. A session may end in three ways,
# which are counted: whole, broken, or never begun, which the log has to say. Whatever the store says of
# it: if a restore does not object, it must be right.
declare -A results=()
session() {
	local name=$1 begun what store code
	shift
	begun=$(status module.sessions_total)
	dmesg -C
	"$@" || not_ok "$name: mount"
	mountpoint -q /mnt || return
	[ -z "${worker:-}" ] || chance "$worker"
	dd if=/dev/urandom of=/mnt/file bs=256k count=8 conv=notrunc,fsync status=none || not_ok "$name: writes in place"
	bdsnap-testtool work /mnt/work 1 1 || not_ok "$name: writes"
	sync -f /mnt || not_ok "$name: sync"
	umount /mnt || not_ok "$name: umount"
	hits=$(faults)
	quiet
	bdsnap settle --raw # where a mount could not be followed, its writes were
	e2fsck -fn /dev/vda >"$work/fsck" 2>&1 || not_ok "$name: the file system is intact"
	store=$(column state /dev/vda)
	bdsnap-restore /dev/vda latest --yes >"$work/out" 2>&1
	code=$?
	if [ $code = 0 ]; then
		what=whole
		[ "$(hash /dev/vda)" = "$want" ] || not_ok "$name: it was restored without a word, but is not as it was"
	elif dmesg | grep -q 'bdsnap:.* broken'; then
		what=broken
	elif [ "$begun" = "$(status module.sessions_total)" ] && dmesg | grep -qE 'bdsnap:.*(unprotected|no session could be started)'; then
		what='never begun'
	else
		what=lost
		cat "$work/out"
		not_ok "$name: neither whole, nor does the log say why not"
	fi
	echo "$name: $what ($store), $hits faults"
	if [ $code != 0 ]; then
		dd if="$work/image" of=/dev/vda bs=1M oflag=direct status=none
		bdsnap settle --raw
	fi
	results[$what]=$((${results[$what]:-0} + 1))
	rm -rf /snapshot/vda*
}
told() {
	local what text=''
	for what in "${!results[@]}"; do text+=", ${results[$what]} $what"; done
	ok "$1: ${text#, }"
	results=()
}

quiet
session "without faults" mount /dev/vda /mnt
is "without faults" 1 "${results[whole]:-0}"
results=()
# Here only the open is an original's, and the functions between the originals are ours.
[ -e $starve ] || below "$first" "$last" $(symbols ' bdsnap_orig_open' 64)
# The reserve is 64 pages, one like the other.
for ((n = 1; n <= 600; n += n < 30 || n > 95 && n < 120 ? 1 : 9)); do
	session "fault $n of a mount" nth $n mount /dev/vda /mnt
	[ "$hits" != 0 ] || break
done
atleast "faults in mount" 5 $((n - 1))
told "sessions with a fault at the mount"
[ -e $starve ] || below "$first" "$last" "$o_first" "$o_last"
for worker in 1 5 25 100; do
	total=0
	for i in 1 2 3; do
		session "faults in $worker of 100 allocations, $i" mount /dev/vda /mnt
		total=$((total + hits))
	done
	atleast "faults with a chance of $worker %" 1 $total
	told "sessions with a chance of $worker %"
done

# ---- And afterwards ----

worker=''
copy /dev/vda before
mount /dev/vda /mnt
bdsnap-testtool work /mnt/work 2 1 || not_ok "the last session's writes"
umount /mnt
copy /dev/vda after
is "the session after them" closed "$(column state /dev/vda)"
try bdsnap-restore /dev/vda latest --yes
is "its restore" 0 $code
complete
