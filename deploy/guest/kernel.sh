#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kernel.sh: prints the path of a guest kernel, downloading Debian's cloud kernel (about 30 MB) once.
# kernel.sh --modules: prints a directory with the full kernel (about 100 MB): vmlinuz-VERSION, and
# lib/modules/VERSION with all that the cloud kernel lacks, such as Soft-RoCE and 9p.
# Nothing is installed. Cached in ${SMEMV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/smemv}.
set -euo pipefail

# The distribution's own kernel first: in Debian 12 that is 6.1, packed with LZ4, which an emulated
# guest unpacks 0.7 s sooner than the zstd of 6.12.
PACKAGES=(linux-image-cloud-amd64 linux-image-6.12-cloud-amd64)
# With modules it is a kernel to run smemv on: the 6.1 of Debian 12 is too old.
PACKAGES_MODULES=(linux-image-6.12-amd64 linux-image-amd64)

die() {
	echo "kernel.sh: $*" >&2
	exit 1
}

cached() {
	local found
	found=$(find "$cache" -maxdepth 1 -name "$wanted" | sort -V | tail -n 1)
	[[ -n $found ]] && echo "$found"
}

# The packages above are empty and depend on the one that holds the kernel.
resolve() {
	local package depends
	for package in "${packages[@]}"; do
		depends=$(apt-cache depends "$package" 2>/dev/null) || continue
		if [[ $depends =~ Depends:\ (linux-image-[0-9][^[:space:]]*) ]]; then
			echo "${BASH_REMATCH[1]}"
			return
		fi
	done
}

fetch() {
	local package=$1
	local options=(-qq)
	# As root apt would drop to a user who cannot write here, and say so at length.
	[[ $EUID -ne 0 ]] || options+=(-o APT::Sandbox::User=root)
	(cd "$work" && apt-get "${options[@]}" download "$package" >&2)
}

# keep_modules VERSION: moved into the cache as one, by rename.
keep_modules() {
	local modules
	modules=$(find "$work/root" -type d -path "*lib/modules/$1" | head -n 1)
	[[ -n $modules ]] || die "$package: holds no lib/modules/$1"
	mkdir -p "$work/kept/lib/modules"
	mv "$modules" "$work/kept/lib/modules/"
	mv "$kernel" "$work/kept/"
	# The package leaves this to its installation.
	/usr/sbin/depmod -b "$work/kept" "$1"
	mv -T "$work/kept" "$cache/modules-$1"
	echo "$cache/modules-$1"
}

packages=("${PACKAGES[@]}") wanted='vmlinuz-*'
if [[ ${1-} == --modules ]]; then
	packages=("${PACKAGES_MODULES[@]}") wanted='modules-*'
	shift
fi
[[ $# -eq 0 ]] || { echo "usage: ${0##*/} [--modules]" >&2; exit 2; }
[[ -n ${SMEMV_CACHE:-${XDG_CACHE_HOME:-${HOME:-}}} ]] ||
	die "no place for the cache: set SMEMV_CACHE or HOME"
cache=$(realpath -m "${SMEMV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/smemv}")
mkdir -p "$cache"
cached && exit 0

exec {lock}>"$cache/.lock"
flock "$lock"
cached && exit 0 # another run fetched it while we waited

[[ $(dpkg --print-architecture) == amd64 ]] || die "the guest needs an amd64 host with Debian's apt"
package=$(resolve)
if [[ -z $package && $EUID -eq 0 ]]; then
	apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
	package=$(resolve)
fi
[[ -n $package ]] || die "apt offers none of: ${packages[*]} (as root: apt-get update)"

work=$(mktemp -d "$cache/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Lists of packages grow stale: one more try with fresh ones.
if ! fetch "$package"; then
	[[ $EUID -eq 0 ]] || die "$package: cannot be downloaded (as root: apt-get update)"
	apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
	package=$(resolve)
	fetch "$package" || die "$package: cannot be downloaded"
fi
dpkg -x "$work"/*.deb "$work/root"
kernel=$(find "$work/root/boot" -name 'vmlinuz-*' | head -n 1)
[[ -n $kernel ]] || die "$package: holds no boot/vmlinuz-*"
if [[ $wanted == modules-* ]]; then
	keep_modules "${kernel##*/vmlinuz-}"
	exit
fi
mv "$kernel" "$cache/"
echo "$cache/${kernel##*/}"
