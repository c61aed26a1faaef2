# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by compare.sh: page faults over Soft-RoCE.
need ib_read_lat fio nvme nbdkit nbd-client mkswap swapon
[[ -x ${bin:?}-uffd ]] || die "$bin-uffd is missing: build it"
in_lab fault $((60 + 240 * ${pairs:?}))
