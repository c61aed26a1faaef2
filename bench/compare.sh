#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares smemv-bench with outside references, in turns, on the same machine in the same minutes.
# See docs/benchmarks.md.
set -euo pipefail

usage() {
	cat <<-'END'
		usage: bench/compare.sh [--only PART,...] [--pairs N] [--seconds S] [--bin FILE] [--output DIR]
		                        [--install] [--markdown]

		  tcp     on loopback, with sockperf and iperf3
		  verbs   over Soft-RoCE in two guests of tests/lab, with perftest
		  fault   there as well: a page fault, with perftest and a fault from local memory, and with
		          swapping in over NVMe-oF and NBD

		Prints a table of medians with their spread, and where the time goes when a goal is missed. Writes
		DIR/compare.svg; what the programs printed is kept in DIR/tcp.log, DIR/verbs and DIR/fault. Parts
		that are left out are shown as they were measured before.

		  --only PART,...  (default: tcp,verbs,fault)
		  --pairs N        alternating measurements of each kind, at least 7 (default: 7)
		  --seconds S      of each measurement of tcp (default: 3); the others count requests
		  --bin FILE       smemv-bench (default: the newest one below build/)
		  --output DIR     (default: build/compare)
		  --install        install the references
		  --markdown       write DIR/compare.md, too
		  --help           this text

		Exit status: 0 measured, whatever came out, 1 a program failed, 2 bad usage.
	END
}

here=$(dirname "$(readlink -f "$0")")
parts=(tcp verbs fault)
only='' pairs=7 seconds=3 bin='' output=$here/../build/compare install=no
markdown=()
PATH=$PATH:/usr/sbin:/sbin

bad_usage() {
	echo "compare: $*" >&2
	usage >&2
	exit 2
}

die() {
	echo "compare: $*" >&2
	exit 1
}

while (($#)); do
	case $1 in
	--install) install=yes ;;
	--markdown) markdown=(--markdown) ;;
	--help | -h) usage; exit 0 ;;
	--only | --pairs | --seconds | --bin | --output)
		[[ -n ${2-} ]] || bad_usage "$1 needs a value"
		declare "${1#--}=$2"
		shift
		;;
	*) bad_usage "unknown argument '$1'" ;;
	esac
	shift
done
[[ $pairs =~ ^([7-9]|[1-9][0-9]{1,2})$ ]] || bad_usage "--pairs: a number from 7 to 999"
[[ $seconds =~ ^[1-9][0-9]{0,3}$ ]] || bad_usage "--seconds: a number from 1 to 9999"
[[ -z $only ]] || IFS=, read -ra parts <<<"$only"
for part in "${parts[@]}"; do
	[[ $part =~ ^(tcp|verbs|fault)$ ]] || bad_usage "--only: there is no part '$part'"
done

if [[ $install == yes ]]; then
	# shellcheck source=../deploy/packages.sh
	. "$here/../deploy/packages.sh"
	packages_install bench
fi

# need TOOL...
need() {
	local tool
	for tool in "$@"; do
		command -v "$tool" >/dev/null || die "$tool is missing: use --install"
	done
}

if [[ -z $bin ]]; then
	# shellcheck disable=SC2012 # names of our own
	bin=$(ls -t "$here"/../build/*/bench/smemv-bench 2>/dev/null | head -n 1) || :
fi
[[ -x $bin ]] || die "no smemv-bench: build it, or say where it is with --bin"
bin=$(readlink -f "$bin")
mkdir -p "$output"
output=$(readlink -f "$output")
need python3

work=$(mktemp -d)
pids=()
cleanup() {
	[[ ${#pids[@]} -eq 0 ]] || kill "${pids[@]}" 2>/dev/null || :
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# in_lab PART SECONDS: bench/compare/guest-PART.sh in two guests, whose output goes to $output/PART.
in_lab() {
	local part=$1 limit=$2 log=$output/$1/2.log status=0 script
	rm -rf "${output:?}/$part"
	printf -v script '%q ' bash "$here/compare/guest-$part.sh" "$bin" "$pairs"
	echo "compare: $part: $pairs pairs in two guests; their output goes to $output/$part" >&2
	"$here/../tests/lab/lab.sh" --output "$output/$part" --timeout "$limit" --cmd 1 "$script" \
		--cmd 2 "$script" || status=$?
	((status != 0)) || return 0
	tail -n 20 "$output/$part"/[12].log >&2 || :
	((status != 124)) || die "$part took more than $limit s; see $log"
	((status != 125)) || die "$part: the lab does not work here, see above"
	die "$part: a program failed, see the end of $log"
}

for part in tcp verbs fault; do
	[[ " ${parts[*]} " == *" $part "* ]] || continue
	# shellcheck source=/dev/null
	. "$here/compare/$part.sh"
done
python3 "$here/compare.py" "${markdown[@]}" "$output"
