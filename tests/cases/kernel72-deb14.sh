#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tags: full
# timeout: 1500
#
# The newest 7.2 of forky, as Debian 14 builds it, with another rustc and another gcc.

exec "$(dirname "$0")/kernel72.sh" forky/7.2
