#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# All at the same time: stamped sectors on /dev/vda (raw), fio with verification on file systems on /dev/vdb
# (ext4) and /dev/vdc (btrfs), fio on /dev/vdd (raw), each block once on /dev/vde (raw).

. "$(dirname "$0")/lib.sh"

# written DEVICE: bytes, as the disk counts them
written() {
	local stat
	read -ra stat <"/sys/block/${1##*/}/stat"
	echo $((stat[6] * 512))
}
# fio_jobs FILE-OR-FOLDER: a job file for fio: each job its own file, or its own part of a device
fio_jobs() {
	local name options at=0
	printf '[global]\nsize=3m\nverify=crc32c\nverify_fatal=1\nrandrepeat=1\nfallocate=none\n'
	while read -r name options; do
		# fio writes zeroes to the start of a device that it maps, whatever the job says: no use where content counts.
		[ -d "$1" ] || [ "$name" != mapped ] || continue
		printf '[%s]\n' "$name"
		if [ -d "$1" ]; then
			echo "filename=$1/$name"
		else
			printf 'filename=%s\noffset=%sm\n' "$1" $at
		fi
		[[ $options != *numjobs* ]] || echo verify=0
		printf '%s\n' "$options" | tr ' ' '\n'
		at=$((at + 3))
	done <<-END
		sequential ioengine=psync rw=write bs=4k
		small ioengine=psync rw=randwrite bs=512 size=512k
		direct ioengine=io_uring direct=1 rw=randwrite bsrange=512-64k blockalign=512 iodepth=16 serialize_overlap=1
		large ioengine=io_uring direct=1 rw=write bs=1m iodepth=4
		sectors ioengine=psync direct=1 rw=randwrite bs=512 size=256k
		mapped ioengine=mmap rw=randwrite bs=4k
		ring ioengine=io_uring rw=randwrite bsrange=4k-256k iodepth=16 end_fsync=1
		overlapping ioengine=io_uring direct=1 rw=randwrite bsrange=512-128k blockalign=512 iodepth=16 numjobs=2 norandommap=1
	END
}

# Nothing is read ahead, so that what is saved can be counted.
load raw_idle_s=600 read_ahead_kib=0
bdsnap-testtool stamp-fill /dev/vda || die "stamps"
make_fs ext4 /dev/vdb
make_fs btrfs /dev/vdc
for name in d e; do dd if=/dev/urandom of=/dev/vd$name bs=1M oflag=direct status=none; done
sync
for name in vda vdb vdc vdd vde; do
	copy /dev/$name $name.0
	activate /dev/$name || die "activate"
done
mkdir "$work/b" "$work/c"
# What the block layer is given for vdb, to compare with what was saved of it
trace=/sys/kernel/tracing
echo 65536 >$trace/buffer_size_kb
minor=$(cat /sys/block/vdb/dev)
echo "dev == $((${minor%:*} << 20 | ${minor#*:}))" >$trace/events/block/block_bio_queue/filter
echo 1 >$trace/events/block/block_bio_queue/enable
before_b=$(written /dev/vdb)
before_e=$(written /dev/vde)
mount /dev/vdb "$work/b"
mount /dev/vdc "$work/c"

# ---- The load ----

for file in "$work/b" "$work/c" /dev/vdd; do fio_jobs "$file" >"$work/jobs-${file##*/}"; done
fio --output="$work/fio-b" "$work/jobs-b" &
runs=($!)
fio --output="$work/fio-c" "$work/jobs-c" &
runs+=($!)
fio --output="$work/fio-d" "$work/jobs-vdd" &
runs+=($!)
fio --name=once --filename=/dev/vde --ioengine=io_uring --direct=1 --rw=randwrite --bs=4k --size=12M --iodepth=16 --output="$work/fio-e" &
runs+=($!)
stamps=()
for i in 0 1 2; do
	bdsnap-testtool stamp-run /dev/vda $((i + 1)) 400 direct $i 3 >"$work/stamps-$i" &
	stamps+=($!)
done
for i in 0 1 2; do
	wait "${stamps[i]}"
	code=$?
	[ $code = 0 ] || cat "$work/stamps-$i"
	is "neighbours in a chunk, direct, writer $i: all is there" 0 $code
done
for how in direct buffered; do
	# What the one before has left in the page cache of the device is not what is there.
	blockdev --flushbufs /dev/vda
	try bdsnap-testtool stamp-fill /dev/vda
	try bdsnap-testtool stamp-run /dev/vda 9 300 $how
	is "at the edges of chunks and at the end, $how: all is there" 0 $code
done
names=(b c d e)
for i in 0 1 2 3; do
	wait "${runs[i]}"
	code=$?
	[ $code = 0 ] || cat "$work/fio-${names[i]}"
	is "fio, vd${names[i]}: all is there" 0 $code
done

# ---- Did the hook see all? ----

# A disk where each chunk was written once: it counts the same bytes.
is "each chunk once: saved as much as the disk counts" "$(($(written /dev/vde) - before_e))" "$(status devices.0.saved_bytes /dev/vde)"
is "that is what was written" $((12 << 20)) "$(status devices.0.saved_bytes /dev/vde)"
fio --name=again --filename=/dev/vde --ioengine=psync --direct=1 --rw=randwrite --bs=4k --size=12M --randseed=3 --output=/dev/null
is "once more: the disk counts it, nothing is saved" "$((24 << 20)) $((12 << 20))" \
	"$(($(written /dev/vde) - before_e)) $(status devices.0.saved_bytes /dev/vde)"

umount "$work/b" || not_ok "umount"
umount "$work/c" || not_ok "umount"
bdsnap settle --raw
# A file system: each chunk of which the block layer was given a part.
echo 0 >$trace/events/block/block_bio_queue/enable
grep -ohE 'overrun: [0-9]+' $trace/per_cpu/cpu*/stats | while read -r _ lost; do must "the trace has lost nothing" 0 "$lost"; done
awk '{
	for (i = 1; i < NF; i++) if ($i == "block_bio_queue:") break
	if ($(i + 2) !~ /W|D/) next
	sector = $(i + 3); count = $(i + 5); sectors += count
	for (c = int(sector / 8); c * 8 < sector + count; c++) chunks[c] = 1
}
END { for (c in chunks) n++; print n, sectors * 512 }' $trace/trace >"$work/traced"
read -r chunks bytes <"$work/traced"
is "ext4: the trace has what the disk counts" "$(($(written /dev/vdb) - before_b))" "$bytes"
is "ext4: saved is each chunk that was written, and no other" "$chunks" "$(status devices.0.saved_chunks /dev/vdb)"

# ---- And back ----

for name in vda vdb vdc vdd vde; do
	copy /dev/$name $name.1
	is "$name: the session" "closed null" "$(last state /dev/$name) $(last errno /dev/$name)"
	try bdsnap-restore /dev/$name latest --yes
	is "$name: restore" 0 $code
done
try bdsnap-testtool stamp-check /dev/vda
is "vda: each sector has its first stamp" 0 $code
try bdsnap verify --all
is "verify" 0 $code
complete
