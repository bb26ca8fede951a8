#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# upgrade.sh: /host/old has an older module and its tools. Copies for the host to compare: NAME.a and NAME.b must be equal.

. "$(dirname "$0")/lib.sh"
marker=/snapshot/.bdsnap-store
version() { head -n 1 $marker; }
version_of() { od -An -tu4 -j 8 -N 4 "/snapshot/$1/blocks.map" | tr -d " "; }
put() { dd if=/dev/urandom of=/dev/vda bs=4k seek="$1" count="$2" oflag=direct conv=notrunc,nocreat status=none; }
settle() { bdsnap settle --raw || not_ok "settle"; }
# load_old: with the new tools, as an upgrade leaves it
load_old() {
	insmod /host/old/bdsnap.ko raw_idle_s=600 hold_timeout_ms=60000 || die "insmod"
	/usr/libexec/bdsnap/bdsnap-handover || not_ok "hand-over"
}
load_new() { load raw_idle_s=600; }
unload() { modprobe -r bdsnap || die "modprobe -r"; }

random 32 /dev/vda
sync /dev/vda
bdsnap passwd --password-file "$password" || die "passwd"

# ---- New tools, the old module, its session runs ----

load_old
is "a store that is made beside the old module is an old one" "bdsnap-store 1" "$(version)"
is "the status says so" "1 1" "$(status module.store_version) $(status module.format_version)"
try bdsnap init --upgrade
is "and it must not be made new" 5 $code
activate /dev/vda
copy /dev/vda one.b
put 100 300
one=$(last name /dev/vda)
is "a session of the old module" "1 recording" "$(version_of "$one") $(last state /dev/vda)"
try bdsnap verify "$one"
is "is verified while it runs" 0 $code
try bdsnap-restore /dev/vda "$one" --to /host/running.a
cp /host/one.b /host/running.b
is "and so is its start had, meanwhile" 0 $code
settle
is "it has ended" closed "$(last state /dev/vda)"
copy /dev/vda two.b
try bdsnap-restore /dev/vda "$one" --yes
is "restored" 0 $code
undo=$(last name /dev/vda)
is "by an undo session that the old module can read" 1 "$(version_of "$undo")"
put 700 50
settle
three=$(last name /dev/vda)
is "which it goes on from" "1 none" "$(version_of "$three") $(last gap_before /dev/vda)"
copy /dev/vda four.b

# ---- The new module ----

deactivate /dev/vda
unload
load_new
is "the new module's loading makes the store new" "bdsnap-store 2" "$(version)"
activate /dev/vda
put 900 100
settle
four=$(last name /dev/vda)
is "nobody has watched in between" "2 unknown" "$(version_of "$four") $(last gap_before /dev/vda)"
for name in one two four; do
	[ $name != two ] || two=$undo
	session=${!name}
	try bdsnap-restore /dev/vda "$session" --to "/host/$name.a" --accept-gap
	is "the start of $name, over both versions" 0 $code
done
try bdsnap verify --all
is "verify" 0 $code

# ---- Old tools, the new module ----

for command in "list" "verify --all" "inspect $four"; do
	# shellcheck disable=SC2086
	try /host/old/bdsnap $command
	differ "old tools do not take it for theirs: $command" 0 $code
done
copy /dev/vda kept.b
try /host/old/bdsnap-restore /dev/vda "$four" --yes --accept-gap
differ "nor do they restore" 0 $code
copy /dev/vda kept.a
find /snapshot -newer "/snapshot/$four/meta.json" -name "blocks.*" >"$work/changed"
is "nor have they changed anything" "" "$(cat "$work/changed")"

# ---- The old module once more ----

deactivate /dev/vda
unload
insmod /host/old/bdsnap.ko raw_idle_s=600 hold_timeout_ms=60000 || die "insmod"
/host/old/bdsnap-handover 2>&1
activate /dev/vda
put 1200 10 || not_ok "the old module stops a write"
is "the old module refuses the store, and says so" broken "$(status devices.0.state /dev/vda)"
is "which it does not touch" "bdsnap-store 2" "$(version)"
deactivate /dev/vda
unload
load_new
activate /dev/vda
put 1300 10
settle
is "all goes on" "2 closed" "$(version_of "$(last name /dev/vda)") $(last state /dev/vda)"
try bdsnap verify --all
is "verify at the end" 0 $code
deactivate /dev/vda
complete
