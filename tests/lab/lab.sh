#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Real verbs without a NIC: runs commands in emulated guests that have Soft-RoCE. See README.md.
set -euo pipefail

usage() {
	cat <<-'END'
		usage: lab.sh [OPTION]... -- COMMAND...
		       lab.sh [OPTION]... --cmd 1 'COMMAND' --cmd 2 'COMMAND'...

		Boots guests on one virtual network and runs a shell command line in each of them, in the current
		directory. They see this machine's files; what they write stays in their memory.

		  --guests N      how many (default: 1, or as many as there are --cmd)
		  --cmd ID CMD    the command of guest ID
		  --memory MIB    of each guest (default: 512)
		  --timeout S     for the commands, not counting the boot (default: 120)
		  --output DIR    output goes to DIR/ID.log instead, and the guests' consoles to DIR/ID.console
		  --help          this text

		Exit status: the highest of the commands', 124 if --timeout ended one, 125 if the lab itself
		failed twice, 2 for bad usage.
		SMEMV_LAB_BOOT_TIMEOUT is how many seconds all guests together may take to boot (default: 180).
	END
}

# Those that init loads, in this order, each after what it needs. rdma_rxe uses crc32 without saying so.
# For RDMA packets of 4 KiB, one for a page.
MTU=4200
MODULES=(virtio_net 9p 9pnet_virtio overlay crc32_generic rdma_rxe rdma_ucm ib_uverbs)
here=$(dirname "$(readlink -f "$0")")
boot_timeout=${SMEMV_LAB_BOOT_TIMEOUT:-180}
guests='' memory=512 timeout=120 output=''
declare -A commands=()
work='' kernel='' modules='' version=''
qemus=() readers=()

say() {
	echo "lab: $*" >&2
}

bad_usage() {
	say "$@"
	usage >&2
	exit 2
}

lab_failed() {
	say "$@"
	exit 125
}

# ---- arguments ----

number() {
	[[ ${2-} =~ ^[1-9][0-9]{0,6}$ ]] || bad_usage "$1 needs a number"
}

text() {
	[[ -n ${2-} ]] || bad_usage "$1: something is missing"
}

parse() {
	local id
	while (($#)); do
		case $1 in
		--guests) number "$@"; guests=$2 ;;
		--memory) number "$@"; memory=$2 ;;
		--timeout) number "$@"; timeout=$2 ;;
		--output) text "$@"; output=$2 ;;
		--cmd)
			number "$@"
			text "$1 $2" "${3-}"
			commands[$2]=$3
			shift
			;;
		--help | -h) usage; exit 0 ;;
		--) shift; break ;;
		*) bad_usage "unknown argument '$1'" ;;
		esac
		shift 2
	done
	if (($#)); then
		[[ ${#commands[@]} -eq 0 ]] || bad_usage "either --cmd or -- COMMAND"
		for ((id = 1; id <= ${guests:=1}; id++)); do
			commands[$id]="$*"
		done
	fi
	: "${guests:=${#commands[@]}}"
	((guests > 0)) || bad_usage "no command"
	((guests <= 99)) || bad_usage "at most 99 guests"
	for ((id = 1; id <= guests; id++)); do
		[[ -n ${commands[$id]-} ]] || bad_usage "no command for guest $id"
	done
	((${#commands[@]} == guests)) || bad_usage "more commands than guests"
}

check_tools() {
	local tool
	for tool in qemu-system-x86_64 busybox cpio xz modprobe setpriv flock rdma; do
		command -v "$tool" >/dev/null || lab_failed "$tool is missing: deploy/packages.sh lab"
	done
	! ldd "$(command -v busybox)" >/dev/null 2>&1 ||
		lab_failed "busybox is not the static one: deploy/packages.sh lab"
}

# ---- what to boot ----

# build_initramfs FILE: busybox, init and the modules; all unpacked, as an emulated CPU unpacks slowly.
build_initramfs() {
	local root=$work/root module path applet
	mkdir -p "$root"/{bin,dev,proc,root,modules}
	cp "$(command -v busybox)" "$root/bin/"
	for applet in sh cat cp insmod mkdir mount poweroff sleep switch_root; do
		ln -s busybox "$root/bin/$applet"
	done
	cp "$here/init" "$root/"
	for module in "${MODULES[@]}"; do
		modprobe --show-depends -d "$modules" -S "$version" "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/list"
	while read -r path; do
		module=$(basename "$path" .xz)
		if [[ $path == *.xz ]]; then xz -dc "$path"; else cat "$path"; fi >"$root/modules/$module"
		echo "$module" >>"$root/modules/order"
	done <"$work/list"
	(cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$1"
}

prepare_boot() {
	local cache cached key lock
	modules=$("$here/../../deploy/guest/kernel.sh" --modules) || lab_failed "there is no kernel to boot"
	kernel=$(echo "$modules"/vmlinuz-*)
	version=${kernel##*/vmlinuz-}
	key=$(cat "$here/init" "$here/lab.sh" "$(command -v busybox)" | sha256sum | cut -c 1-16)
	cache=$(dirname "$modules")/lab
	cached=$cache/initramfs-$version-$key
	mkdir -p "$cache"
	exec {lock}>"$cache/.lock"
	flock -w 60 "$lock" || lab_failed "$cache/.lock: held for a minute by another lab"
	if [[ ! -e $cached ]]; then
		build_initramfs "$cache/.new" || lab_failed "the initramfs cannot be built"
		rm -f "$cache"/initramfs-*
		mv "$cache/.new" "$cached"
	fi
	# A lab of another version may remove it from the cache any time.
	ln "$cached" "$work/initramfs" 2>/dev/null || cp "$cached" "$work/initramfs"
	exec {lock}>&-
}

prepare_commands() {
	local id
	for id in "${!commands[@]}"; do
		printf '%s\n' "${commands[$id]}" >"$work/$id.command"
	done
	printf 'export %s=%q\n' LAB_GUESTS "$guests" LAB_TIMEOUT "$timeout" LAB_CWD "$PWD" \
		LAB_BIN "$here" LAB_MODULES "$modules/lib/modules/$version" >"$work/environment"
}

# ---- guests ----

# read_output ID: from the guest's pipe to where it belongs.
read_output() {
	if [[ -n $output ]]; then
		exec cat >"$output/$1.log"
	elif ((guests == 1)); then
		exec cat
	else
		exec sed -u "s/^/[$1] /"
	fi
}

# network ID: sets network, QEMU's arguments. Guest 1's QEMU is the hub, the others have a stream to it:
# a stream holds the sender back when the receiver is slow, where a datagram would be lost, and
# Soft-RoCE needs long to make up for that.
network() {
	local id=$1
	network=(-netdev "stream,id=n0,server=off,addr.type=unix,addr.path=$work/$id.net")
	if ((guests == 1)); then
		network=(-netdev "user,id=n0,restrict=on")
	elif ((id == 1)); then
		network=(-netdev "hubport,id=n0,hubid=0")
		for ((id = 2; id <= guests; id++)); do
			network+=(-netdev "stream,id=s$id,server=on,addr.type=unix,addr.path=$work/$id.net"
				-netdev "hubport,id=h$id,hubid=0,netdev=s$id")
		done
	fi
}

# wait_for_hub: until the last of its sockets is there; if QEMU has failed, its guest will be missed.
wait_for_hub() {
	local i
	for ((i = 0; i < 300; i++)); do
		[[ ! -S $work/$guests.net ]] && kill -0 "${qemus[1]}" 2>/dev/null || return 0
		sleep 0.1
	done
}

# start ID: QEMU gets killed when this script ends, in whatever way.
start() {
	local id=$1
	local -a network
	network "$id"
	rm -f "$work/$id.pipe" "$work/$id.monitor"
	mkfifo "$work/$id.pipe"
	: >"$work/$id.status"
	read_output "$id" <"$work/$id.pipe" &
	readers[id]=$!
	# One vCPU: with more, rxe is several times slower here, and kernels panic as they patch themselves.
	# No timer check: a kernel that gets no processor time at that moment takes its timer for broken.
	setpriv --pdeathsig KILL qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 1 \
		-M pc -m "${memory}M" -nodefaults -no-user-config -display none -no-reboot \
		-kernel "$kernel" -initrd "$work/initramfs" \
		-append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check LAB_ID=$id LAB_DIR=$work" \
		-serial "file:${output:-$work}/$id.console" \
		-virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
		"${network[@]}" -device \
		"virtio-net-pci,id=nic0,netdev=n0,host_mtu=$MTU,mac=52:54:00:77:00:$(printf %02x "$id")" \
		-device virtio-serial-pci \
		-chardev "socket,id=monitor,path=$work/$id.monitor,server=on,wait=off" -mon chardev=monitor \
		-chardev "socket,id=cable,path=$work/$id.monitor" \
		-device virtserialport,chardev=cable,name=lab.cable \
		-chardev file,id=output,path=/dev/stdout \
		-device virtserialport,chardev=output,name=lab.output \
		-chardev "file,id=status,path=$work/$id.status" \
		-device virtserialport,chardev=status,name=lab.status \
		</dev/null >"$work/$id.pipe" 2>"$work/$id.qemu" &
	qemus[id]=$!
}

stop() {
	kill -KILL "${qemus[@]}" 2>/dev/null || :
	# Readers end with the pipes. To wait also keeps the shell from announcing who was killed.
	wait "${qemus[@]}" "${readers[@]}" 2>/dev/null || :
	qemus=() readers=()
}

said() {
	grep -q "^$2" "$work/$1.status"
}

# await WORD SECONDS: until all guests have said it; 1 if one is dead, 2 if time is up.
await() {
	local end=$((SECONDS + $2)) id missing
	while :; do
		missing=0
		for id in "${!qemus[@]}"; do
			said "$id" "$1" && continue
			missing=1
			# Its last word may have come since we looked.
			kill -0 "${qemus[id]}" 2>/dev/null || said "$id" "$1" || return 1
		done
		((missing)) || return 0
		((SECONDS < end)) || return 2
		sleep 0.1
	done
}

# show_consoles WORD: of the guests that have not said it.
show_consoles() {
	local id
	for ((id = 1; id <= guests; id++)); do
		said "$id" "$1" && continue
		echo "---- guest $id: its console, and what QEMU said"
		cat "${output:-$work}/$id.console" "$work/$id.qemu" 2>/dev/null | tail -n 60
	done >&2
}

# run_guests: sets worst, or 1: the lab has failed.
run_guests() {
	local id status=0
	rm -f "$work"/*.net
	for ((id = 1; id <= guests; id++)); do
		start "$id"
		((id > 1 || guests == 1)) || wait_for_hub
	done
	if ! await BOOTED "$boot_timeout"; then
		stop
		say "a guest did not boot"
		show_consoles BOOTED
		return 1
	fi
	if ! await UP 60; then
		stop
		say "the guests do not reach each other"
		show_consoles UP
		return 1
	fi
	# A guest ends its command by itself in time, unless its kernel is stuck.
	await LAB_RC= $((timeout + 20)) || status=$?
	stop
	if ((status != 0)); then
		say "a guest $( ((status == 1)) && echo crashed || echo "is stuck")"
		show_consoles LAB_RC=
		worst=124
		((status == 2))
		return
	fi
	worst=$(sed -n 's/^LAB_RC=//p' "$work"/*.status | sort -n | tail -n 1)
}

# shellcheck disable=SC2317 # called by a trap
cleanup() {
	stop
	rm -rf "$work"
}

parse "$@"
check_tools
if [[ -n $output ]]; then
	mkdir -p "$output"
	output=$(realpath "$output")
fi
trap 'exit 130' INT
trap 'exit 143' TERM HUP
trap cleanup EXIT
work=$(mktemp -d "/tmp/smemv-lab.$$.XXXXXX")
prepare_boot
prepare_commands
if ! run_guests; then
	say "once more"
	run_guests || lab_failed "the lab does not work here"
fi
exit "$worst"
