#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs all tests. The last line counts them.
set -euo pipefail

usage() {
	cat <<-'EOF'
		usage: tests/run.sh [--no-install] [--full] [--only unit|e2e|lab|NAME]

		Builds with gcc, and again with ASan and UBSan, runs the unit tests of both, then the end-to-end
		tests: real QEMU guests that are split-migrated between namespaces on this machine; then the
		tests of RDMA, in emulated guests with Soft-RoCE. Takes an hour.
		Needs Debian 12 or newer, Linux 6.7 or later, and root.

		  --no-install   do not install packages
		  --full         all cells of the kill matrix (tests/e2e/matrix.sh), not a random choice: half an hour more
		  --only WHAT    only the unit tests, the end-to-end tests or those in the lab, or one of these:
		                 migrate, verify, negative, kill, restart, loss, refuse, takeover, upgrade,
		                 source, disks, discard, control, observe, budget, matrix, soak,
		                 lab-selftest, lab-transport, lab-smemv, lab-takeover, lab-migrate
		  --help         this text

		Exit status: 0 all passed, 1 a test failed or could not run, 2 bad usage.
		A test that is skipped and not listed in tests/skips fails, too.
		SMEMV_E2E_LOGS=DIR keeps the logs of end-to-end tests that fail (default: build/e2e-logs).
	EOF
}

source_dir=$(dirname "$(dirname "$(readlink -f "$0")")")
install=yes only=all
while (($#)); do
	case $1 in
	--no-install) install=no ;;
	--full) export SMEMV_MATRIX=full ;;
	--only)
		[[ $# -gt 1 ]] || { usage >&2; exit 2; }
		only=$2
		shift
		;;
	--help | -h) usage; exit 0 ;;
	*) echo "tests/run.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
	esac
	shift
done
script=$source_dir/tests/e2e/$only.sh
[[ $only != soak ]] || script=$source_dir/tests/soak/soak.sh
[[ $only != lab-* ]] || script=$source_dir/tests/lab/${only#lab-}.sh
[[ $only =~ ^(all|unit|e2e|lab)$ || ($only != lib && -x $script) ]] ||
	{ echo "tests/run.sh: there is no test '$only'" >&2; exit 2; }

cd "$source_dir"
# shellcheck source=../deploy/lib.sh
. deploy/lib.sh
# shellcheck source=../deploy/packages.sh
. deploy/packages.sh
kernel_check || exit 1
[[ $install == no ]] || packages_install test

results=$(mktemp)
trap 'rm -f "$results"' EXIT
export SMEMV_RESULTS=$results
export SMEMV_E2E_LOGS=${SMEMV_E2E_LOGS:-$source_dir/build/e2e-logs}
rm -rf "$SMEMV_E2E_LOGS"
# Which fault points were used, see common/fault_point.h.
export SMEMV_FAULT_HITS=$source_dir/build/fault-hits
rm -rf "$SMEMV_FAULT_HITS"
mkdir -p "$SMEMV_FAULT_HITS"

# build PRESET
build() {
	echo "== build: $1"
	# The tests are debugged by logs, not by the compiler's chatter.
	cmake --preset "$1" >"build-$1.log" 2>&1 && cmake --build --preset "$1" >>"build-$1.log" 2>&1 || {
		tail -n 40 "build-$1.log"
		rm -f "build-$1.log"
		echo "fail build $1" >>"$results"
		return 1
	}
	rm -f "build-$1.log"
	echo "pass build $1" >>"$results"
}

# unit PRESET
unit() {
	local junit="$source_dir/build/$1/unit.xml"
	echo "== unit tests: $1"
	ctest --preset "$1" --output-junit "$junit" >"$junit.log" 2>&1 || tail -n 60 "$junit.log"
	python3 - "$junit" "$1" >>"$results" <<-'EOF'
		import sys
		import xml.etree.ElementTree as ElementTree

		words = {"run": "pass", "fail": "fail", "notrun": "skip", "disabled": "skip"}
		for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
		    word = "skip" if case.find("skipped") is not None else words.get(case.get("status"), "fail")
		    print(word, sys.argv[2], case.get("name"))
	EOF
	grep " $1 unit" "$results" || :
}

# e2e NAME PRESET
e2e() {
	local start=$SECONDS
	echo "== end-to-end: $1 ($2)"
	local script=tests/e2e/$1.sh
	[[ $1 != soak ]] || script=tests/soak/soak.sh
	SMEMV_BIN=$source_dir/build/$2 "$script" || echo "   $1 failed; logs in $SMEMV_E2E_LOGS/$1"
	echo "   $((SECONDS - start)) s"
}

# lab NAME
lab() {
	local start=$SECONDS
	echo "== lab: $1"
	if ! SMEMV_BIN=$source_dir/build/debug "tests/lab/$1.sh"; then
		echo "   $1 failed; logs in $SMEMV_E2E_LOGS/lab-$1"
		grep -q '^fail lab' "$results" || echo "fail lab-$1: it did not come to its end" >>"$results"
	fi
	echo "   $((SECONDS - start)) s"
}

programs=(memserver/memserverd pagerd/smemv-pagerd migrator/smemv-migrate vmm/smemv-run ctl/smemvctl
	bench/smemv-bench client/smemv-sort)

# A fault point that no test uses tests nothing; and what people run must have none.
fault_points() {
	local program name before
	before=$(grep -c '^fail' "$results" || :)
	for program in "${programs[@]}"; do
		if nm "build/release/$program" | grep -q smv_fault_point; then
			echo "fail fault points: build/release/$program has some" >>"$results"
		fi
	done
	while read -r name; do
		[[ -e $SMEMV_FAULT_HITS/$name ]] ||
			echo "fail fault points: $name was never hit" >>"$results"
	done < <(grep -rhoE --include='*.c' --exclude-dir=tests --exclude-dir=build \
		'smv_fault_point\("[a-z0-9-]+"' . | cut -d'"' -f2 | sort -u)
	[[ $(grep -c '^fail' "$results" || :) != "$before" ]] ||
		echo "pass fault points: each was hit, and the release build has none" >>"$results"
}

status=0
if [[ $only == all || $only == unit ]]; then
	{ build debug && unit debug; } || status=1
	{ build asan && unit asan; } || status=1
	# What people run: the compiler sees more when it optimizes.
	build release || status=1
else
	build debug || status=1
	[[ $only != e2e && $only != verify ]] || build asan || status=1
fi
if ((status == 0)); then
	for name in migrate verify negative kill restart loss refuse takeover upgrade source disks discard control observe budget matrix soak; do
		[[ $only == all || $only == e2e || $only == "$name" ]] || continue
		# One whole migration with sanitized daemons; the others at the speed of what people run.
		preset=debug
		[[ $name != verify ]] || preset=asan
		e2e "$name" "$preset"
	done
	for name in selftest transport smemv takeover migrate; do
		[[ $only == all || $only == lab || $only == "lab-$name" ]] || continue
		lab "$name"
	done
fi

[[ $only != all || $status != 0 ]] || fault_points

# Only what is known to be impossible in some places may be left out.
while read -r name; do
	grep -qxF -e "$name" tests/skips || echo "fail not to be skipped: $name" >>"$results"
done < <(sed -n 's/^skip //p' "$results")

count() {
	grep -c "^$1 " "$results" || :
}
grep '^fail ' "$results" | sed 's/^fail/FAILED:/' || :
grep '^skip ' "$results" | sed 's/^skip/skipped:/' || :
echo "$(count pass) passed, $(count fail) failed, $(count skip) skipped"
[[ $(count fail) -eq 0 && $(count pass) -gt 0 && $status -eq 0 ]]
