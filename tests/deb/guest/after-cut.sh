# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The boot after a session was cut; and the packages' own test.

# shellcheck source=lib.sh
. /host/lib.sh

has "the session that was cut is called interrupted" 'mount +interrupted' "$(bdsnap list /data)"
records "/data is recorded again" /data
is "no unit has failed" "" "$(failed_units)"
echo "correct horse" >/run/password
BDSNAP_PASSWORD_FILE=/run/password /host/main-job
is "the packages' own test" 0 $?
