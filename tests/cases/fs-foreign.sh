#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 1000
#
# File systems of other systems, and the simplest there are.

exec "$(dirname "$0")/../fs.sh" vfat exfat ntfs udf jfs minix bfs <<END
bfs folders
bfs fsync
exfat links
exfat preallocation
exfat punch hole
exfat zero range
jfs preallocation
jfs punch hole
jfs zero range
minix direct writes
minix fstrim
minix preallocation
minix punch hole
minix zero range
ntfs zero range
udf fstrim
udf preallocation
udf punch hole
udf zero range
vfat links
vfat punch hole
vfat zero range
END
