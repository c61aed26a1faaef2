#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build.sh OUTDIR [MODULE...]: compiles the workload and packs it as the /init of
# OUTDIR/initramfs.gz, with kernel modules (.ko or .ko.xz) that it loads as it needs them.
# Silent unless something fails. The kernel brings /dev/console itself, so no root is needed.
set -euo pipefail

[[ $# -ge 1 ]] || { echo "usage: ${0##*/} OUTDIR [MODULE...]" >&2; exit 2; }
source=$(dirname "$(readlink -f "$0")")/workload.c
mkdir -p "$1"
work=$(mktemp -d "$1/.guest.XXXXXX")
trap 'rm -rf "$work"' EXIT

# No vectors: an emulated CPU runs them in helper functions, word by word is faster.
"${CC:-gcc}" -std=gnu17 -O2 -fno-tree-vectorize -funroll-loops -static -s -pthread -D_GNU_SOURCE \
	-Wall -Wextra -Wshadow -Wconversion -Werror -o "$work/init" "$source"
mkdir "$work/root" "$work/root/dev" "$work/root/proc"
mv "$work/init" "$work/root/init"
for module in "${@:2}"; do
	name=$(basename "$module" .xz)
	if [[ $module == *.xz ]]; then xz -dc "$module"; else cat "$module"; fi >"$work/root/$name"
done
find "$work/root" -exec touch -d @0 {} +
(cd "$work/root" && find . -mindepth 1 | sort |
	cpio --quiet --create --format=newc --owner=0:0 --reproducible) |
	gzip -1 -n >"$work/initramfs.gz"
# By rename, so that a guest that is starting reads the old file or the new one.
mv "$work/initramfs.gz" "$1/initramfs.gz"
