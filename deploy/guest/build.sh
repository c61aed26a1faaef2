#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build.sh OUTDIR: compiles the workload and packs it as the /init of OUTDIR/initramfs.gz.
# Silent unless something fails. The kernel brings /dev/console itself, so no root is needed.
set -euo pipefail

[[ $# -eq 1 ]] || { echo "usage: ${0##*/} OUTDIR" >&2; exit 2; }
source=$(dirname "$(readlink -f "$0")")/workload.c
mkdir -p "$1"
work=$(mktemp -d "$1/.guest.XXXXXX")
trap 'rm -rf "$work"' EXIT

# No vectors: an emulated CPU runs them in helper functions, word by word is faster.
"${CC:-gcc}" -std=gnu17 -O2 -fno-tree-vectorize -funroll-loops -static -s -pthread -D_GNU_SOURCE \
	-Wall -Wextra -Wshadow -Wconversion -Werror -o "$work/init" "$source"
mkdir "$work/root" "$work/root/dev" "$work/root/proc"
mv "$work/init" "$work/root/init"
touch -d @0 "$work/root/init" "$work/root/dev" "$work/root/proc"
(cd "$work/root" && printf '%s\n' dev proc init |
	cpio --quiet --create --format=newc --owner=0:0 --reproducible) |
	gzip -1 -n >"$work/initramfs.gz"
# By rename, so that a guest that is starting reads the old file or the new one.
mv "$work/initramfs.gz" "$1/initramfs.gz"
