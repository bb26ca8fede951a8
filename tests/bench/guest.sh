#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# guest.sh MODEL FIRST-ROUND LAST-ROUND [WORD...]: runs the contenders in turn, each round in another order.
# MODEL is `model` (null_blk with a timer, in a guest whose clock counts instructions) or `virtio`
# (/dev/vda: origin, /dev/vdb: origin below dm-thin, /dev/vdc: store). WORDs choose workloads and
# contenders by their whole names; without any of a kind, all of that kind are run. What was measured goes
# to /host/raw: the reports of fio, and a line of JSON in cells.jsonl for each cell.

. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"
model=$1 first=$2 last=$3
shift 3
words=" $* "
raw=/host/raw
mkdir -p $raw
all_contenders='plain linear snapshot-n snapshot-p thin hooks async strict'
all_workloads='rand4k-q1-j1 rand4k-q1-j4 rand4k-q32-j1 rand4k-q32-j4 seq64k seq1m mixed zipf fsync tree trim'
# chosen NAME...: those of them that a word names; all, if none does
chosen() {
	local name any=''
	for name in "$@"; do [[ $words != *" $name "* ]] || any+="$name "; done
	echo "${any:-$*}"
}
# shellcheck disable=SC2086
contenders=($(chosen $all_contenders)) workloads=($(chosen $all_workloads))

# ---- Devices ----

case $model in
model)
	nullb origin 288
	[[ " ${contenders[*]} " != *' thin '* ]] || nullb thinorigin 720
	nullb store 800
	origin=/dev/origin thin_origin=/dev/thinorigin store=/dev/store
	;;
virtio) origin=/dev/vda thin_origin=/dev/vdb store=/dev/vdc ;;
esac
# Partitions of the store's disk: the store, exceptions, metadata of dm-thin
printf '%s\n' 'size=512M' 'size=240M' 'size=16M' 'size=16M' | sfdisk --quiet --label gpt $store || die "partitions"
store1=${store}1 cow=${store}2 thin_meta=${store}3 other=${store}4
sectors() { blockdev --getsz "$1"; }
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 $store1
mount -o noatime $store1 /snapshot
chmod 700 /snapshot

# fill DEVICE: a file system with the files that the workloads use. Their blocks have been written.
fill() {
	mkfs.ext4 -q -F -N 8192 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$1"
	mount -o noatime "$1" /mnt || die "mounting $1"
	local name i
	for name in rand4k-q1-j1=8 rand4k-q1-j4=16 rand4k-q32-j1=16 rand4k-q32-j4=32 seq64k=16 seq1m=96 mixed=16 zipf=16 fsync=4 trim=16 warm=4; do
		for ((i = 0; i < ${name#*=}; i++)); do cat /tmp/mib; done >"/mnt/${name%=*}"
	done
	sync -f /mnt
	umount /mnt
}
yes bdsnap | head -c 1M >/tmp/mib
fill $origin
mkdir -p /tmp/tree
cp -r /usr/share/zoneinfo/{Africa,America,Asia,Europe} /tmp/tree/ 2>/dev/null || cp -r /usr/share/doc/[a-d]* /tmp/tree/
tar -C /tmp -cf /tmp/tree.tar tree
rm -rf /tmp/tree

snapshots=0
load min_free_mib=16
dmsetup version >&2
if [[ " ${contenders[*]} " = *' thin '* ]]; then
	dd if=/dev/zero of=$thin_meta bs=1M count=1 status=none
	# Blocks of 64 KiB, the smallest
	dmsetup create pool --table "0 $(sectors $thin_origin) thin-pool $thin_meta $thin_origin 128 0 1 skip_block_zeroing" || die pool
	dmsetup message pool 0 'create_thin 0'
	dmsetup create thin --table "0 $((280 * 2048)) thin /dev/mapper/pool 0"
	fill /dev/mapper/thin
fi

# ---- Contenders: each sets `device`, and takes itself away again ----

table="0 $(sectors $origin)"
enter() {
	device=$origin
	case $1 in
	linear)
		dmsetup create linear --table "$table linear $origin 0"
		device=/dev/mapper/linear
		;;
	snapshot-?)
		dd if=/dev/zero of=$cow bs=64k count=1 oflag=direct status=none
		dmsetup create snapshot --table "$table snapshot $origin $cow ${1#snapshot-} 8"
		dmsetup create origin --table "$table snapshot-origin $origin"
		device=/dev/mapper/origin
		;;
	thin)
		snapshots=$((snapshots + 1))
		dmsetup suspend thin
		dmsetup message pool 0 "create_snap $snapshots 0"
		dmsetup resume thin
		device=/dev/mapper/thin
		;;
	hooks) activate $other ;;
	async | strict) activate --durability "$1" $origin ;;
	esac || not_ok "entering $1"
}
leave() {
	case $1 in
	linear) dmsetup remove linear ;;
	snapshot-?) dmsetup remove origin && dmsetup remove snapshot ;;
	thin) dmsetup message pool 0 "delete $snapshots" ;;
	hooks) deactivate $other ;;
	async | strict)
		deactivate $origin
		rm -rf /snapshot/*_*Z /snapshot/.bdsnap-chain
		;;
	esac || not_ok "leaving $1"
}

# ---- Cells ----

stats() {
	local s
	read -r -a s <"/sys/block/${1#/dev/}/stat"
	local IFS=,
	echo "[${s[*]}]"
}
# cell NAME TOUCH COMMAND...: runs it and writes down how the devices' counters moved, and the time in ns
cell() {
	local name=$1 touch=$2 o=$origin before began ns
	shift 2
	[ "$contender" != thin ] || o=$thin_origin
	before="\"origin0\":$(stats $o),\"store0\":$(stats $store)"
	began=${EPOCHREALTIME/./}
	"$@" || not_ok "$contender $name $touch: $*"
	ns=$(((${EPOCHREALTIME/./} - began) * 1000))
	echo "{\"model\":\"$model\",\"round\":$round,\"contender\":\"$contender\",\"workload\":\"$name\",\"touch\":\"$touch\"," \
		"\"ns\":$ns,$before,\"origin1\":$(stats $o),\"store1\":$(stats $store)}" >>$raw/cells.jsonl
}
# figure NAME VALUE: something else that was measured
figure() {
	echo "{\"model\":\"$model\",\"round\":$round,\"contender\":\"$contender\",\"figure\":\"$1\",\"value\":$2}" >>$raw/cells.jsonl
}
run_fio() {
	local name=$1 touch=$2 engine=libaio
	shift 2
	[[ " $* " != *' --iodepth=1 '* ]] || engine=psync
	cell "$name" "$touch" fio --name="$name" --filename="/mnt/$name" --ioengine=$engine --direct=1 --thread --group_reporting \
		--clocksource=clock_gettime --randseed=$((round * 7919)) --fallocate=none --invalidate=0 --percentile_list=50:99:99.9 \
		--output-format=json --output="$raw/$model.$round.$contender.$name.$touch.json" "$@"
}
untar() {
	tar -C /mnt -xf /tmp/tree.tar
	sync -f /mnt
	rm -rf /mnt/tree
	sync -f /mnt
}
discard() {
	rm -f /mnt/trim
	sync -f /mnt
	fstrim /mnt 2>/dev/null || echo "$contender does not discard"
}
# workload NAME TOUCH
workload() {
	case $1 in
	rand4k-q1-j1) run_fio "$@" --rw=randwrite --bs=4k --iodepth=1 --size=8M --io_size=1M ;;
	rand4k-q1-j4) run_fio "$@" --rw=randwrite --bs=4k --iodepth=1 --size=4M --offset_increment=4M --numjobs=4 --io_size=1M ;;
	rand4k-q32-j1) run_fio "$@" --rw=randwrite --bs=4k --iodepth=32 --size=16M --io_size=12M ;;
	rand4k-q32-j4) run_fio "$@" --rw=randwrite --bs=4k --iodepth=32 --size=8M --offset_increment=8M --numjobs=4 --io_size=8M ;;
	seq64k) run_fio "$@" --rw=write --bs=64k --iodepth=8 --size=16M ;;
	seq1m) run_fio "$@" --rw=write --bs=1M --iodepth=4 --size=96M ;;
	mixed) run_fio "$@" --rw=randrw --rwmixread=70 --bs=4k --iodepth=32 --size=16M --io_size=12M ;;
	zipf) run_fio "$@" --rw=randwrite --bs=4k --iodepth=32 --random_distribution=zipf:1.2 --size=16M --io_size=12M ;;
	fsync)
		if [ "$2" = second ]; then
			# The file system's journal, too, has to be written all round.
			fio --name=warm --filename=/mnt/warm --ioengine=psync --direct=1 --rw=randwrite --bs=4k --fsync=1 --size=4M --io_size=2M \
				--thread --fallocate=none --output=/dev/null
		fi
		run_fio "$@" --rw=randwrite --bs=4k --iodepth=1 --fsync=1 --size=4M --io_size=1M
		;;
	tree) cell "$@" untar ;;
	trim)
		[ "$2" = first ] || return 0
		cell "$@" discard
		dd if=/dev/zero of=/mnt/trim bs=1M count=16 status=none
		;;
	esac
}
# Memory that the module has for pre-images, in bytes, at most so far
peak() { status module.memory_peak_bytes; }

for ((round = first; round <= last; round++)); do
	n=${#contenders[@]}
	for ((i = 0; i < n; i++)); do
		contender=${contenders[(i + round) % n]}
		enter $contender
		began=${EPOCHREALTIME/./}
		mount -o noatime "$device" /mnt || die "mounting $device"
		figure mount_us $((${EPOCHREALTIME/./} - began))
		for name in "${workloads[@]}"; do
			# Both touches right after each other: what else a file system writes is then the same.
			for touch in first second; do workload "$name" $touch; done
		done
		case $contender in
		async | strict)
			figure state "\"$(status devices.0.state $origin)\""
			figure saved_set_bytes "$(status devices.0.saved_set_bytes $origin)"
			;;
		esac
		sync -f /mnt
		began=${EPOCHREALTIME/./}
		umount /mnt || not_ok "unmounting $device"
		figure unmount_us $((${EPOCHREALTIME/./} - began))
		case $contender in
		async | strict)
			session=$(echo /snapshot/*_*Z)
			figure stored_bytes $(($(stat -c %s "$session/blocks.dat") + $(stat -c %s "$session/blocks.map")))
			figure saved_bytes "$(list sessions.0.saved_bytes)"
			figure memory_peak_bytes "$(peak)"
			;;
		esac
		leave $contender
		echo "round $round: $contender" >&2
	done
done
complete
