#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Views of sessions of /dev/vda; NAME.STATE.image must be what stateSTATE is.

. "$(dirname "$0")/lib.sh"

modprobe -a fuse
mkdir /view /past
# view ARG...: in the background, until its file is there; sets `image` and `pid`
view() {
	local i
	bdsnap view "$@" /view 2>"$work/view" &
	pid=$!
	for ((i = 0; i < 600; i++)); do
		image=$(find /view -name '*.img')
		[ -z "$image" ] || return 0
		kill -0 $pid 2>/dev/null || break
		sleep 0.1
	done
	cat "$work/view"
	not_ok "view $*"
	return 1
}
# unview NAME
unview() {
	umount /view
	wait $pid
	is "$1" 0 $?
	cat "$work/view"
}
image() { dd if="$image" of="/host/$1.$2.image" bs=1M conv=sparse status=none || not_ok "reading $image"; }

load
make_fs ext4 /dev/vda
sync
activate /dev/vda
copy /dev/vda state0
mount /dev/vda /mnt
mkdir /mnt/d
random 1 /mnt/d/file
echo "the first text" >/mnt/text
ln -s text /mnt/link
bdsnap-testtool work /mnt/work 1 1 || not_ok "load"
sha256sum /mnt/d/file | cut -d ' ' -f 1 >"$work/sum"
umount /mnt
copy /dev/vda state1
mount /dev/vda /mnt
echo "another text" >/mnt/text
random 1 /mnt/d/file
rm -r /mnt/link
echo new >/mnt/new
bdsnap-testtool work /mnt/work 2 1 || not_ok "load"
umount /mnt
copy /dev/vda state2
read -r s0 s1 <<<"$(column name /dev/vda)"

# ---- A device that nobody uses ----

view "$s0"
image closed 0
mount /dev/vda /mnt 2>/dev/null && not_ok "mounted though it is viewed"
unview "the view of a closed session ends"
view "$s1"
image younger 1
if mount -o ro,loop,noload "$image" /past; then
	is "a file of the past" "the first text" "$(cat /past/text)"
	umount /past
else
	not_ok "mounting the image"
fi
try touch "$image"
is "it is read-only" 1 $code
unview "the view of the younger ends"
view "$s0"
try bdsnap-prune --keep-last 1 --min-age 0 --apply
is "what is viewed is not pruned" 6 $code
is "and is still there" 2 "$(list 'sessions.#' /dev/vda)"
kill -INT $pid
wait $pid
is "the view ends by a signal" 0 $?

is "cat" "the first text" "$(bdsnap cat "$s1" /text)"
try bdsnap cat "$s1" /new
is "what was not there yet" 3 $code
try bdsnap extract "$s1" /d -o "$work/out"
is "extract" 0 $code
is "the extracted file" "$(cat "$work/sum")" "$(sha256sum "$work/out/file" | cut -d ' ' -f 1)"
try bdsnap extract "$s1" text -o "$work/out/file"
is "nothing is overwritten" 1 $code
try bdsnap inspect "$s1" --files --svg /host/picture.svg
is "inspect" 0 $code
for line in 'added .* /new' 'removed .* /link' 'changed .* /text' 'changed .*1.0 MiB .*1.0 MiB .*/d/file'; do
	if grep -qE "^ *$line" <<<"$out"; then ok "it names $line"; else not_ok "it names $line"; fi
done
try bdsnap inspect "$s1" --json
is "its schema" 1 "$(bdsnap-testtool json schema_version <<<"$out")"
try bdsnap verify --all --deep
is "verify --deep" 0 $code
is "the list says so" "clean clean" "$(column verified_deep /dev/vda)"

# ---- A device in use ----

mount /dev/vda /mnt
bdsnap-testtool work /mnt/work 3 1 || not_ok "load"
read -r _ _ s2 <<<"$(column name /dev/vda)"
view "$s1"
(for i in 4 5; do bdsnap-testtool work /mnt/work$i $i 1; done) &
load=$!
image under-load 1
wait $load || not_ok "the load"
image after-load 1
unview "the view of a device in use ends"
view "$s2"
sync
image recorded 2
umount /mnt
try cat "$image"
is "the session ended meanwhile" 0 $code
unview "its view ends"
copy /dev/vda last

make_fs ext4 /dev/vdb
sync
activate /dev/vdb --durability async
mount /dev/vdb /mnt
echo x >/mnt/x
sync
sleep 1
try bdsnap view "$(column name /dev/vdb)" /view
is "async, in use: refused" 5 $code
umount /mnt
complete
