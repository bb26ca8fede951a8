#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# timeout: 300
#
# Who may register what, and what wrong calls get.

. "$(dirname "$0")/../lib.sh"

guest "no complaint, nothing left behind" --disk 16M --disk 16M -- control.sh
exit $failed
