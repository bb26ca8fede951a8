#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1500
#
# kernel72.sh [KERNEL]: the older of the two series that the module is made for, where it differs from
# the newer one. All other cases run with it as well: scripts/test --kernel trixie-backports/7.2.

. "$(dirname "$0")/../lib.sh"

kernel=${1:-trixie-backports/7.2}
status=0
kver=$("$top/scripts/kernel" "$kernel" 2>"$dir/why") || status=$?
cat "$dir/why" >&2
if [ $status = 3 ]; then
	skip "$kernel: $(sed -n "s/^kernel: error: //p" "$dir/why")"
	exit
fi
[ $status = 0 ] || exit $status
export BDSNAP_KERNEL=$kver

if "$top/scripts/build-module" --kernel "$kver" --clippy >"$dir/clippy" 2>&1; then
	ok "$kver: the module builds without a warning"
else
	cat "$dir/clippy" >&2
	not_ok "$kver: the module builds without a warning: see the log"
fi
"$(dirname "$0")/binary.sh" >"$dir/binary" || failed=1
sed "s/ok binary:/ok $kver:/" "$dir/binary"

for name in ext4 image; do disk $name 64M; done
for name in btrfs1 btrfs2; do disk $name 128M; done
for name in f2fs1 f2fs2; do disk $name 64M; done
guest "$kver: no complaint, nothing left behind" --disk "$dir/ext4" --disk "$dir/image" --disk "$dir/btrfs1" \
	--disk "$dir/btrfs2" --disk "$dir/f2fs1" --disk "$dir/f2fs2" --timeout 400 -- kernel72.sh "$kver"

debugfs -R "dump /image.raw $dir/image.raw" "$dir/image" 2>/dev/null
mv "$dir/image.raw" "$dir/image"
for name in ext4 image btrfs1 btrfs2 f2fs1 f2fs2; do
	unequal "$name: a session has changed it" "$share/$name.0" "$share/$name.1"
	equal "$name: back, byte for byte" "$share/$name.0" "$dir/$name"
done
exit $failed
