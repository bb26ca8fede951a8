# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced after guest/lib.sh by what measures.

# nullb NAME MIB: a disk of 32 channels, of which each needs four milliseconds for up to 16 KiB, with a cache
# that has to be flushed
nullb() {
	local d=/sys/kernel/config/nullb/$1
	if [ ! -d /sys/kernel/config/nullb ]; then
		mount -t configfs configfs /sys/kernel/config
		modprobe null_blk nr_devices=0
	fi
	mkdir "$d"
	echo 1 >"$d/memory_backed"
	echo "$2" >"$d/size"
	echo 4096 >"$d/blocksize"
	echo 2 >"$d/irqmode"
	echo "${BENCH_LATENCY_NS:-4000000}" >"$d/completion_nsec"
	echo 32 >"$d/hw_queue_depth"
	echo 32 >"$d/max_sectors"
	echo 4 >"$d/cache_size"
	echo 1 >"$d/discard"
	echo 1 >"$d/power" || die "null_blk $1"
}
# no_nullb NAME: away with it
no_nullb() {
	echo 0 >"/sys/kernel/config/nullb/$1/power"
	rmdir "/sys/kernel/config/nullb/$1"
}
# microseconds COMMAND...: sets `us` to the time that it took
microseconds() {
	local began=${EPOCHREALTIME/./}
	"$@" || not_ok "$*"
	us=$((${EPOCHREALTIME/./} - began))
}
