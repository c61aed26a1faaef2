#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# packages.sh build|demo|lab|test|bench: installs what is missing of the packages for that purpose.
# May be sourced as well: packages_install PURPOSE.

PACKAGES_BUILD=(gcc libc6-dev cmake ninja-build pkg-config libgrpc-dev libprotobuf-c-dev
	protobuf-c-compiler protobuf-compiler libjansson-dev libxxhash-dev libssl-dev
	libibverbs-dev librdmacm-dev libmicrohttpd-dev)
PACKAGES_DEMO=("${PACKAGES_BUILD[@]}" qemu-system-x86 cpio gzip iproute2 procps util-linux python3 jq)
PACKAGES_LAB=(qemu-system-x86 busybox-static cpio xz-utils kmod util-linux iproute2 ibverbs-providers
	ibverbs-utils rdmacm-utils perftest)
PACKAGES_BENCH=("${PACKAGES_LAB[@]}" sockperf iperf3 fio nvme-cli nbdkit nbd-client python3)
PACKAGES_TEST=("${PACKAGES_DEMO[@]}" "${PACKAGES_LAB[@]}" libcriterion-dev)

# packages_missing NAME...: those that are not installed, one per line.
packages_missing() {
	local package
	for package in "$@"; do
		[[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
			echo "$package"
	done
}

packages_apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# packages_apt_install NAME...: quiet, unless it fails.
packages_apt_install() {
	local output
	output=$(packages_apt install -y --no-install-recommends "$@" 2>&1) || {
		echo "$output" >&2
		return 1
	}
}

# packages_known NAME...: apt's lists have a candidate of each.
packages_known() {
	local package
	for package in "$@"; do
		apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || return 1
	done
}

packages_check_system() {
	local id='' version='' name=''
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		echo "packages: this system has no apt; Debian 12 or newer is needed" >&2
		return 1
	fi
	# shellcheck disable=SC1091 # read in a subshell, so its variables stay there
	IFS='|' read -r id version name < <(. /etc/os-release &&
		echo "${ID:-}|${VERSION_ID:-}|${PRETTY_NAME:-}")
	if [[ $id == debian && -n $version && ${version%%.*} -lt 12 ]]; then
		echo "packages: $name is too old; Debian 12 or newer is needed" >&2
		return 1
	fi
}

# packages_install build|demo|lab|test|bench
packages_install() {
	local -a wanted missing
	case ${1:-} in
	build) wanted=("${PACKAGES_BUILD[@]}") ;;
	demo) wanted=("${PACKAGES_DEMO[@]}") ;;
	lab) wanted=("${PACKAGES_LAB[@]}") ;;
	test) wanted=("${PACKAGES_TEST[@]}") ;;
	bench) wanted=("${PACKAGES_BENCH[@]}") ;;
	*)
		echo "usage: packages.sh build|demo|lab|test|bench" >&2
		return 2
		;;
	esac
	packages_check_system || return
	mapfile -t missing < <(packages_missing "${wanted[@]}")
	[[ ${#missing[@]} -gt 0 ]] || return 0
	if [[ $EUID -ne 0 ]]; then
		echo "packages: missing: ${missing[*]}: run this as root or via sudo" >&2
		return 1
	fi
	echo "packages: installing ${missing[*]}"
	if packages_known "${missing[@]}" && packages_apt_install "${missing[@]}" 2>/dev/null; then
		return 0
	fi
	# Unknown to apt, or its lists name versions that are gone.
	packages_apt update >/dev/null && packages_apt_install "${missing[@]}"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
	set -euo pipefail
	packages_install "$@"
fi
