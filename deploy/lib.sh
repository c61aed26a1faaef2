# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# A lab of "hosts" on one machine, for the demo and the tests. To be sourced (bash).
#
# A host is a network namespace and a mount namespace of its own, kept by a process that sleeps.
# Its /run, /dev/shm, /tmp and /var/tmp are its own and all other disks are read-only, so hosts share
# no path that they could write to. They meet on a bridge in one more network namespace.
#
#   lab_create                   once per script; lab_destroy also belongs into its EXIT trap
#   host_create NAME IP          a new host, IP/24 on eth0; from the main shell, not from a subshell
#   host_run NAME CMD...         in the foreground
#   host_exec NAME CMD... &      in the background: $! is the program itself, not a shell around it
#   host_start NAME LOG CMD...   the same with output appended to LOG (a path of ours); sets HOST_PID
#   host_pid NAME                the process that keeps the host
#   host_path NAME PATH          the host's PATH as seen from outside
#   lab_destroy                  ends all that runs in the hosts, and the hosts; idempotent
#   lab_check_clean              after lab_destroy: prints what is left, 1 if anything is
#   kernel_check                 is this kernel new enough?
#
# LAB_DIR is a directory for the script's own files (logs, the initramfs); lab_destroy removes it.
# LAB_VISIBLE names the directories that hosts must see, read-only, wherever they lie: the checkout
# and its build directory may be in /tmp. Programs start in /, so name them by absolute paths.
# LAB_WRITABLE, if set, is a directory inside one of them that hosts may write to.
# No host outlives the script, however it ends: a watcher notices that and cleans up.

LAB_DIR=
LAB_WATCHER=
LAB_BRIDGE=
LAB_FILES_BEFORE=
LAB_NAMESPACES=()
HOST_PID=
declare -A LAB_HOSTS=()
if [[ -z ${LAB_VISIBLE+set} ]]; then
	LAB_VISIBLE=("$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
fi

lab_error() {
	echo "lab: $*" >&2
	return 1
}

# userfaultfd's WP_ASYNC and the PAGEMAP_SCAN ioctl came with Linux 6.7.
kernel_check() {
	local running major minor
	running=$(uname -r)
	IFS=.- read -r major minor _ <<<"$running"
	((major > 6 || (major == 6 && minor >= 7))) ||
		lab_error "Linux $running is running; 6.7 or newer is needed" \
			"(userfaultfd WP_ASYNC and PAGEMAP_SCAN)"
}

# ---- namespaces ----

# lab_hold NAME UNSHARE-OPTION...: starts a process in new namespaces, sets HOST_PID. It has a session
# of its own, so that Ctrl-C reaches the script, which then ends things in order.
lab_hold() {
	local name=$1 ready fd
	shift
	# shellcheck disable=SC2016 # $0 is the name, over there
	exec {fd}< <(exec setsid unshare "$@" bash -c \
		'echo ready; exec -a "$0" sleep infinity >/dev/null 2>&1' \
		"smemv-lab-host-$name" </dev/null)
	HOST_PID=$!
	if ! read -r ready <&"$fd" || [[ $ready != ready ]]; then
		exec {fd}<&-
		lab_error "$name: no new namespace: unshare $* failed"
		return 1
	fi
	exec {fd}<&-
	lab_record "$HOST_PID" "$@"
}

# Remembers the namespaces: in a variable for us, in a file for the watcher.
lab_record() {
	local pid=$1 option kind namespace
	shift
	for option in "$@"; do
		case $option in
		--net) kind=net ;;
		--mount) kind=mnt ;;
		*) continue ;;
		esac
		namespace=$(readlink "/proc/$pid/ns/$kind") || return
		# Everything in it will be killed, so it must not be the one we live in.
		[[ $namespace != "$(readlink "/proc/self/ns/$kind")" ]] ||
			lab_error "$option: no new namespace" || return
		LAB_NAMESPACES+=("$namespace")
	done
	printf '%s\n' "${LAB_NAMESPACES[@]}" >"$LAB_DIR/.namespaces"
}

# lab_processes NAMESPACE...: the ids of all processes in any of them.
lab_processes() {
	[[ $# -gt 0 ]] || return 0
	# Processes end while we look, hence no complaints.
	find /proc -maxdepth 1 -name '[0-9]*' -printf '/proc/%f/ns/net\n/proc/%f/ns/mnt\n' 2>/dev/null |
		xargs -r stat -c '%N' 2>/dev/null | tr -d "'" |
		awk -v wanted="$*" '
			BEGIN { n = split(wanted, list, " "); for (i = 1; i <= n; i++) ours[list[i]] = 1 }
			$3 in ours { split($1, part, "/"); print part[3] }' | sort -un
}

# lab_kill NAMESPACE...: until nothing is left; a process may fork while we look.
lab_kill() {
	local round
	local -a pids
	for ((round = 0; round < 100; round++)); do
		mapfile -t pids < <(lab_processes "$@")
		[[ ${#pids[@]} -gt 0 ]] || return 0
		kill -KILL "${pids[@]}" 2>/dev/null || :
		# Ours are zombies until waited for, and the shell would announce each; others are not ours.
		wait "${pids[@]}" 2>/dev/null || :
		sleep 0.02
	done
	lab_error "processes that cannot be killed: ${pids[*]}"
}

# ---- the lab ----

# Files of ours in the places that are shared outside, but for the directories of other runs.
lab_files() {
	find /dev/shm /run /tmp /var/tmp -maxdepth 1 -name '*smemv*' ! -name 'smemv-lab.*' | sort
}

lab_create() {
	[[ -z $LAB_DIR ]] || lab_error "lab_create: there is a lab already" || return
	[[ $EUID -eq 0 ]] || lab_error "namespaces need root (CAP_SYS_ADMIN): run as root or via sudo" ||
		return
	unshare --net --mount true 2>/dev/null ||
		lab_error "no new namespaces: CAP_SYS_ADMIN is missing (a container without --privileged?)" ||
		return
	LAB_FILES_BEFORE=$(lab_files)
	LAB_NAMESPACES=()
	LAB_HOSTS=()
	LAB_DIR=$(mktemp -d "/tmp/smemv-lab.$$.XXXXXX") || return
	setsid bash "${BASH_SOURCE[0]}" watch "$$" "$LAB_DIR" </dev/null >/dev/null 2>&1 &
	LAB_WATCHER=$!
	disown "$LAB_WATCHER"
	lab_hold bridge --net || return
	LAB_BRIDGE=$HOST_PID
	nsenter -t "$LAB_BRIDGE" -n sh -c 'ip link set lo up && ip link add br0 type bridge && ip link set br0 up' ||
		lab_error "no network bridge: the kernel needs CONFIG_BRIDGE and CONFIG_VETH"
}

# What only the script's own end could leave undone.
lab_watch() {
	local pid=$1 dir=$2
	local -a namespaces=()
	tail --pid="$pid" -s 0.2 -f /dev/null
	[[ -d $dir ]] || return 0
	if [[ -f $dir/.namespaces ]]; then
		mapfile -t namespaces <"$dir/.namespaces"
		lab_kill "${namespaces[@]}"
	fi
	rm -rf "$dir"
}

lab_destroy() {
	[[ -n $LAB_DIR ]] || return 0
	lab_kill "${LAB_NAMESPACES[@]}" || :
	# The watcher leads a session of its own: its tail goes with it.
	kill -KILL -- "-$LAB_WATCHER" 2>/dev/null || :
	rm -rf "$LAB_DIR"
	LAB_DIR=
	LAB_HOSTS=()
}

lab_check_clean() {
	local left status=0
	left=$(lab_processes "${LAB_NAMESPACES[@]}" | xargs -r ps -o pid=,args= -p) || :
	[[ -z $left ]] || { echo "processes left:"; echo "$left"; status=1; }
	left=$(for left in "${LAB_NAMESPACES[@]}"; do grep -F " $left " /proc/self/mountinfo || :; done)
	[[ -z $left ]] || { echo "namespaces left:"; echo "$left"; status=1; }
	left=$(comm -13 <(echo "$LAB_FILES_BEFORE") <(lab_files))
	left+=$(find /tmp -maxdepth 1 -name "smemv-lab.$$.*")
	[[ -z $left ]] || { echo "files left:"; echo "$left"; status=1; }
	return "$status"
}

# ---- hosts ----

# Runs inside a new host's mount namespace, with the directories to keep visible as arguments.
# shellcheck disable=SC2016 # expands over there
LAB_MOUNTS='
set -eu
findmnt -rno TARGET --real | while read -r target; do
	mount -n -o remount,bind,ro "$target" 2>/dev/null || [ "$target" != / ] || exit 1
done
for dir in /run /dev/shm /var/tmp /tmp; do
	[ -d "$dir" ] && [ ! -L "$dir" ] || continue
	mount -n -t tmpfs -o mode=1777 smemv-lab /mnt
	for visible in "$@"; do
		case $visible/ in
		"$dir"/*)
			mkdir -p "/mnt${visible#"$dir"}"
			mount -n --bind "$visible" "/mnt${visible#"$dir"}"
			mount -n -o remount,bind,ro "/mnt${visible#"$dir"}"
			;;
		esac
	done
	mount -n --move /mnt "$dir"
done
if [ -n "${LAB_WRITABLE-}" ]; then
	mount -n --bind "$LAB_WRITABLE" "$LAB_WRITABLE"
	mount -n -o remount,bind,rw "$LAB_WRITABLE"
fi'

# host_create NAME IP
host_create() {
	local name=$1 ip=$2
	[[ -n $LAB_DIR ]] || lab_error "host_create: lab_create comes first" || return
	[[ $BASHPID == "$$" ]] || lab_error "host_create: not from a subshell" || return
	[[ $name =~ ^[a-z][a-z0-9-]{0,13}$ && $name != br0 && $name != lo ]] ||
		lab_error "$name: not a host name (up to 14 of a-z 0-9 -)" || return
	[[ -z ${LAB_HOSTS[$name]-} ]] || lab_error "$name: exists" || return
	lab_hold "$name" --net --mount --propagation private || return
	LAB_HOSTS[$name]=$HOST_PID
	nsenter -t "$HOST_PID" -m sh -c "$LAB_MOUNTS" "$name" "${LAB_VISIBLE[@]}" ||
		lab_error "$name: cannot make its /run, /dev/shm and /tmp" || return
	# shellcheck disable=SC2016 # expands over there
	nsenter -t "$LAB_BRIDGE" -n sh -c '
		ip link add name "$1" type veth peer name eth0 netns "$2" && ip link set dev "$1" master br0 up' \
		sh "$name" "$HOST_PID" || lab_error "$name: no veth" || return
	# shellcheck disable=SC2016 # expands over there
	nsenter -t "$HOST_PID" -n sh -c '
		ip link set lo up && ip address add "$1/24" dev eth0 && ip link set eth0 up' sh "$ip" ||
		lab_error "$name: cannot take the address $ip"
}

host_pid() {
	[[ -n ${LAB_HOSTS[$1]-} ]] || lab_error "$1: no such host" || return
	echo "${LAB_HOSTS[$1]}"
}

host_path() {
	local pid
	pid=$(host_pid "$1") || return
	echo "/proc/$pid/root$2"
}

host_run() {
	local pid
	pid=$(host_pid "$1") || return
	nsenter -t "$pid" -n -m -- "${@:2}"
}

# Replaces the shell that calls it, so it refuses to replace the script.
host_exec() {
	[[ $BASHPID != "$$" ]] || lab_error "host_exec $*: only in the background, with &" || return
	local pid
	pid=$(host_pid "$1") || exit 1
	exec nsenter -t "$pid" -n -m -- "${@:2}"
}

# shellcheck disable=SC2034 # HOST_PID is for the caller
host_start() {
	host_exec "$1" "${@:3}" </dev/null >>"$2" 2>&1 &
	HOST_PID=$!
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
	set -euo pipefail
	[[ ${1:-} == watch && $# -eq 3 ]] || lab_error "to be sourced, not run" || exit 2
	lab_watch "$2" "$3"
fi
