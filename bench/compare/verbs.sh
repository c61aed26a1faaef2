# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by compare.sh: perftest and smemv-bench over Soft-RoCE.
need ib_read_lat ib_write_bw ib_read_bw
in_lab verbs $((60 + 180 * ${pairs:?}))
