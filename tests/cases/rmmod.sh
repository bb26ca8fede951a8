#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 400
#
# The modules of registered disks' drivers are unloaded: they go, or are in use while a session runs.

. "$(dirname "$0")/../lib.sh"

guest "no complaint, nothing left behind" --timeout 300 -- rmmod.sh
exit $failed
