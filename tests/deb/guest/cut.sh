# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A session is cut: the machine restarts without unmounting.

# shellcheck source=lib.sh
. /host/lib.sh

records "/data is recorded" /data
head -c 3000000 /dev/urandom >/data/cut
sync
ls /snapshot >/host/sessions
rm -f /host/status
echo 0 >/host/status
echo b >/proc/sysrq-trigger
sleep 100
