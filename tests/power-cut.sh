# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced by the cases power-cut*.sh. A guest works on a disk whose writes and flushes are logged; of
# the log, disks are made as power cuts may leave them; a guest restores on each; the disks are judged here.
# If one is wrong, log, disk and what the guest said of it stay, and how to make the disk again is told.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# So many cut disks a guest has.
BATCH=20
name='' layout='' origin='' bytes='' what=''
programs=$("$top/scripts/build-tools" | tail -n 1)
cut_tool() { "$programs/bdsnap-cut" "$@"; }

# record NAME MIB WHAT [FS [STORE-FS [STORE-MIB]]]: does WHAT (see guest/cut-record.sh) on an origin of so many MiB
record() {
	local store_mib=${6:-96} was
	name=$1 what=$3 origin=$2
	layout=1,$((1 + origin)),$((1 + origin + store_mib)),$((3 + origin + store_mib))
	bytes=$((origin << 20))
	rm -rf "${share:?}" && mkdir "$share"
	rm -f "$dir"/recorded "$dir"/writes "$dir"/whole
	disk recorded "$((3 + origin + store_mib))M"
	guest "$name: recorded" --store none --disk "$dir/recorded,serial=cut" --log-writes "$dir/writes" --timeout 300 -- \
		cut-record.sh "$layout" "$what" "${@:4:2}"
	cut_tool whole "$dir/writes" "$layout" end "$dir/whole"
	equal "$name: the log makes the disk that the guest has left" "$dir/recorded" "$dir/whole"
	rm -f "$dir/recorded"
	cut_tool whole "$dir/writes" "$layout" start "$dir/whole"
	# The same by the log and by what the guest has read
	was=now
	[[ $what != strict && $what != async ]] || was=start
	if holds "$dir/whole" "$share/$was"; then ok "$name: and what it has read"; else not_ok "$name: what the guest has read is another"; fi
	rm -f "$dir/whole"
}

# holds DISK FILE: is the origin on the disk what FILE holds?
holds() { cmp -s -n "$bytes" -i $((1 << 20)):0 "$1" "$2"; }

# cuts FROM:TO:FIRST-LAST[:lies]...: cuts with these seeds between two marks, no seed twice. `lies`: of a disk
# that has lost what it had flushed; how many of these were noticed comes into `lied`.
cuts() {
	local spec from to first last lies cut todo=() batch disks reason
	lied=0
	for spec; do
		IFS=: read -r from to first lies <<<"$spec"
		last=${first#*-} first=${first%-*}
		for ((cut = first; cut <= last; cut++)); do todo+=("$cut:$from:$to:$lies"); done
	done
	while [ ${#todo[@]} -gt 0 ]; do
		batch=() disks=()
		for spec in "${todo[@]:0:BATCH}"; do
			IFS=: read -r cut from to lies <<<"$spec"
			cut_tool cut "$dir/writes" "$layout" "$from" "$to" "$cut" "$dir/cut$cut" ${lies:+"$lies"} >"$dir/cut$cut.what" || not_ok "making cut $cut"
			disks+=(--disk "$dir/cut$cut,serial=cut")
			batch+=("$cut")
		done
		guest "$name: ${#batch[@]} cuts, the last is $cut" --store none "${disks[@]}" --timeout 600 -- cut-restore.sh "$what" "${batch[@]}"
		for spec in "${todo[@]:0:BATCH}"; do
			IFS=: read -r cut from to lies <<<"$spec"
			reason=$(judge "$cut")
			if [ -n "$lies" ]; then
				[ -z "$reason" ] || lied=$((lied + 1))
			elif [ -z "$reason" ]; then
				ok "$name: cut $cut, session: $(said "$cut" state): $(<"$dir/cut$cut.what")"
			else
				not_ok "$name: cut $cut: $reason: $(<"$dir/cut$cut.what")"
				BDSNAP_KEEP=1
				echo "kept: $dir; to make this disk again: bdsnap-cut cut $dir/writes $layout $from $to $cut DISK" >&2
				continue
			fi
			rm -f "$dir/cut$cut" "$dir/cut$cut.what" "$share/$cut".*
		done
		todo=("${todo[@]:BATCH}")
	done
}

# said CUT KEY: what the guest has found or done; a dash for nothing
said() {
	local text
	text=$(cat "$share/$1.$2" 2>/dev/null)
	echo "${text:--}"
}

# judge CUT: says what is wrong, if anything is
judge() {
	local cut=$1 found refused restore i image
	[ "$(said "$cut" store)" = 0 ] || { echo "the store can't be mounted"; return; }
	case $what in
	strict)
		[ "$(said "$cut" verify)" = 0 ] || { echo "verify: $(said "$cut" verify)"; return; }
		[[ $(said "$cut" mount) = [0-] ]] || { echo "the origin can't be mounted"; return; }
		found=$(said "$cut" state) refused=$(said "$cut" refused) restore=$(said "$cut" restore)
		case $found,$refused,$restore in
		# Without a session nothing has been written yet.
		-,-,-) ;;
		interrupted,[5-],0 | closed,[5-],0) ;;
		*) echo "$found: status $refused, with --accept-gap $restore"; return ;;
		esac
		holds "$dir/cut$cut" "$share/start" || echo "$found: not the start"
		;;
	async)
		[[ $(said "$cut" mount) = [0-] ]] || { echo "the origin can't be mounted"; return; }
		# Refused, or right. Nothing is said of the time before the session is in the store.
		case $(said "$cut" state),$(said "$cut" refused),$(said "$cut" restore),$(said "$cut" loss) in
		-,-,-,-) ;;
		interrupted,[5-],5,6) ;;
		closed,[5-],0,-) holds "$dir/cut$cut" "$share/start" || echo "closed: not the start" ;;
		*) echo "$(said "$cut" state): status $(said "$cut" refused), $(said "$cut" restore), $(said "$cut" loss)" ;;
		esac
		;;
	restore)
		[ "$(said "$cut" verify)" = 0 ] || { echo "verify: $(said "$cut" verify)"; return; }
		image=start
		case $(said "$cut" how),$(said "$cut" restore) in
		resume,0 | anew,0) ;;
		# Not begun yet, or done already: there is nothing to resume or undo.
		resume,3) if holds "$dir/cut$cut" "$share/now"; then image=now; fi ;;
		undo,0 | undo,3) image=now ;;
		*) echo "$(said "$cut" how): status $(said "$cut" restore)"; return ;;
		esac
		holds "$dir/cut$cut" "$share/$image" || echo "$(said "$cut" how): not what it was"
		;;
	prune)
		[ "$(said "$cut" verify)" = 0 ] || { echo "verify: $(said "$cut" verify)"; return; }
		for i in 0 1 2 3 4; do
			case $i,$(said "$cut" state$i),$(said "$cut" image$i) in
			[13],-,-) ;;
			*,closed,0) cmp -s "$share/$cut.$i.image" "$share/state$i" || echo "session $i: not its start" ;;
			*) echo "session $i: $(said "$cut" state$i), status $(said "$cut" image$i)" ;;
			esac
		done
		read -ra found <"$share/names"
		[ "$(said "$cut" again),$(said "$cut" remain),$(said "$cut" verify-again),$(said "$cut" restore)" = "0,${found[0]} ${found[2]} ${found[4]},0,0" ] ||
			echo "pruned again: $(said "$cut" again), $(said "$cut" remain), $(said "$cut" verify-again), $(said "$cut" restore)"
		holds "$dir/cut$cut" "$share/state0" || echo "not the first session's start"
		;;
	esac
}

# many FS MIB: what the cases power-cut-FS.sh do
many() {
	record "$1, strict" "$2" strict "$1"
	cuts start:+200:1-12 start:end:13-44 large:ended:45-56
	record "$1, async" "$2" async "$1"
	cuts start:end:1-12
}
