# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A newer version of the packages is installed while a session runs, and the module built in this machine.

# shellcheck source=lib.sh
. /host/lib.sh

records "/data is recorded" /data
before=$(bdsnap status | head -n 1)
echo "deb [trusted=yes] file:/host/repo2 ./" >/etc/apt/sources.list.d/bdsnap.list
apt-get -q update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/bdsnap.list -o Dir::Etc::sourceparts=-
apt-get -qy install bdsnap bdsnap-dkms
is "the packages are upgraded" 0 $?
has "to the newer version" '^0\.1\.1' "$(dpkg-query -W -f '${Version}' bdsnap)"
is "the running module stays" "$before" "$(bdsnap status | head -n 1)"
records "and its session goes on" /data
has "the status says so" "run 'bdsnap reload'" "$(bdsnap status)"
has "a reload would cut the session" 'sessions are recording' "$(bdsnap reload 2>&1)"
umount /data
bdsnap reload
is "reload" 0 $?
is "now it is another load" different "$([ "$before" = "$(bdsnap status | head -n 1)" ] && echo same || echo different)"
hasnt "the new module runs" "run 'bdsnap reload'" "$(bdsnap status)"
mount /data
records "/data is recorded by it" /data
