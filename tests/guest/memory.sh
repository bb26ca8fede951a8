#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# memory.sh HOW: see tests/cases/memory.sh. /dev/vda: origin, /dev/vdb: store, below dm-delay.

. "$(dirname "$0")/lib.sh"
how=$1
# peak: the high-water mark of memory for pre-images, checked against what is allowed, a slice for the session on top
peak() {
	local most limit
	most=$(status module.memory_peak_bytes)
	limit=$(status module.memory_limit_bytes)
	atmost "$1: memory, of $limit" $((limit + (1 << 20))) "$most"
	atleast "$1: it was used" $((512 << 10)) "$most"
}
# killed: how many programs the kernel has killed for want of memory
killed() { awk '$1 == "oom_kill" { print $2 }' /proc/vmstat; }

free -m
mkfs.ext4 -q -F -E lazy_itable_init=0 /dev/vdb
dmsetup create store --table "0 $(blockdev --getsz /dev/vdb) delay /dev/vdb 0 0 /dev/vdb 0 20"
dmsetup mknodes
mount /dev/mapper/store /snapshot || die "the store"
bdsnap init
make_fs ext4 /dev/vda
mount /dev/vda /mnt
random 80 /mnt/file
dd if=/dev/urandom of=/mnt/swap bs=1M count=128 status=none
chmod 600 /mnt/swap
mkswap -q /mnt/swap
umount /mnt
sync
copy /dev/vda vda
# Patience: an emulated processor with a tenth of the memory that it would like. A deadlock outlasts it all the same.
load min_free_mib=8 hold_timeout_ms=60000
activate --durability "$how" /dev/vda
mount /dev/vda /mnt

# ---- More is wanted than there is ----

swapon /mnt/swap || not_ok "swapon"
is "it counts as swap on the protected device" 1 "$(grep -c swap /proc/swaps)"
stress-ng --vm 1 --vm-bytes 200M --vm-keep --vm-method write64 --timeout 25 --quiet &
hog=$!
fio --name=mapped --filename=/mnt/file --size=80M --ioengine=mmap --rw=randwrite --bs=4k --io_size=24M --randseed=1 --output="$work/fio" &
mapped=$!
bdsnap-testtool work /mnt/work 1 4 || not_ok "$how: the load"
wait $mapped
code=$?
[ $code = 0 ] || cat "$work/fio"
is "$how: writes through a mapping" 0 $code
wait $hog || not_ok "$how: the program that needs memory"
free -m
cat /proc/swaps
bdsnap status
atleast "$how: pages were swapped out" 1000 "$(awk '$1 == "pswpout" { print $2 }' /proc/vmstat)"
is "$how: nothing was killed for want of memory" 0 "$(killed)"
swapoff /mnt/swap || not_ok "swapoff"
umount /mnt || not_ok "$how: umount"
is "$how: the session" "mount closed" "$(last kind) $(last state)"
peak "$how"
try bdsnap-restore /dev/vda latest --yes --no-undo
is "$how: restore" 0 $code
rm -rf /snapshot/vda_*

# ---- A write larger than all of it ----

rmmod bdsnap
load min_free_mib=8 mem_limit_mib=1
activate --durability "$how" /dev/vda
mount /dev/vda /mnt
tracing=/sys/kernel/tracing
echo 1 >$tracing/events/block/block_bio_queue/enable
# Set aside at boot: memory in one piece makes one bio of all of a write.
fio --name=huge --filename=/mnt/file --size=80M --ioengine=psync --direct=1 --mem=shmhuge --rw=write --bs=8m --io_size=40M \
	--output="$work/fio" || { cat "$work/fio"; not_ok "$how: large writes"; }
echo 0 >$tracing/events/block/block_bio_queue/enable
largest=$(awk '{
	for (i = 1; i < NF; i++) if ($i == "block_bio_queue:") break
	if ($(i + 2) ~ /W/ && $(i + 5) > most) most = $(i + 5)
} END { print most * 512 }' $tracing/trace)
atleast "$how: writes larger than all memory for pre-images" $((2 << 20)) "$largest"
blkdiscard -f -z -o $((200 << 20)) -l $((60 << 20)) /dev/vda || not_ok "$how: 60 MiB of zeroes at once"
umount /mnt || not_ok "$how: umount"
is "$how, large writes: the session" "mount closed" "$(last kind) $(last state)"
peak "$how, large writes"
try bdsnap-restore /dev/vda latest --yes --no-undo
is "$how, large writes: restore" 0 $code
complete
