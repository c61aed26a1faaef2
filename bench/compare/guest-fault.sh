#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# guest-fault.sh BIN PAIRS: in both guests: faults of smemv-bench, what they are made of, and swapping in
# over NVMe-oF and NBD.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
bin=$1 pairs=$2
# shellcheck source=guest.sh
. "$here/guest.sh"

PAGES=2048 # 8 MiB, of each kind
UUID=5f0e7a1c-9d0b-4c3e-8f52-3a6f1f6f2b10
nvmet=/sys/kernel/config/nvmet
cgroup=/sys/fs/cgroup/compare
data=/run/compare

# ---- guest 1 ----

write() {
	echo "$1" >"$2"
}

serve_nvme() {
	local subsystem=$nvmet/subsystems/swap port=$nvmet/ports/1
	modprobe -a configfs brd nvmet nvmet_rdma
	mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
	mkdir -p "$subsystem/namespaces/1" "$port"
	write 1 "$subsystem/attr_allow_any_host"
	write /dev/ram0 "$subsystem/namespaces/1/device_path"
	write 1 "$subsystem/namespaces/1/enable"
	write rdma "$port/addr_trtype"
	write ipv4 "$port/addr_adrfam"
	write 192.168.77.1 "$port/addr_traddr"
	write 4420 "$port/addr_trsvcid"
	ln -s "$subsystem" "$port/subsystems/swap"
}

serve() {
	serve_smemv 16M
	serve_perftest ib_read_lat -p 20001 -s 4096 -n "$PAGES"
	serve_perftest ib_read_lat -p 20002 -s 4096 -n "$PAGES" -e
	serve_nvme
	nbdkit --foreground --port 10809 memory 32M &
}

# ---- guest 2 ----

# The network may lose packets of the first try.
connect_nvme() {
	local i
	for ((i = 0; i < 5; i++)); do
		! nvme connect --transport rdma --traddr 192.168.77.1 --trsvcid 4420 --nqn swap \
			--nr-io-queues 1 --queue-size 32 --reconnect-delay 1 --keep-alive-tmo 60 \
			--hostnqn "nqn.2014-08.org.nvmexpress:uuid:$UUID" --hostid "$UUID" || return 0
		sleep 1
	done
	echo "compare: nvme cannot connect to guest 1; is nvmet-rdma in this kernel?"
	return 1
}

connect_swaps() {
	modprobe -a nvme_rdma nbd
	connect_nvme
	nbd-client -N '' 192.168.77.1 10809 /dev/nbd0
	nvme_device=$(echo /dev/nvme?n1)
	[[ -b $nvme_device && -b /dev/nbd0 ]] || {
		echo "compare: the devices to swap to did not come up"
		return 1
	}
	# One page at a time, as smemv-bench fault reads them.
	write 0 /proc/sys/vm/page-cluster
	write +memory /sys/fs/cgroup/cgroup.subtree_control
	mkdir "$cgroup" "$data"
	mount -t tmpfs -o size=32M tmpfs "$data"
}

# swap_out: a file of $PAGES pages, none of which is in memory. Not of zeros: Linux 6.12 does not write
# those. First a soft limit, then what is left: a low hard limit gets the writer killed.
swap_out() {
	local i
	rm -f "$data/file"
	write 2M "$cgroup/memory.high"
	(
		write "$BASHPID" "$cgroup/cgroup.procs"
		dd if=/dev/urandom of="$data/file" bs=64K count=$((PAGES / 16)) status=none
	)
	for ((i = 0; i < 40; i++)); do
		write 8M "$cgroup/memory.reclaim" 2>/dev/null || :
		grep -qx 'shmem 0' "$cgroup/memory.stat" && grep -qx 'swapcached 0' "$cgroup/memory.stat" && break
		sleep 0.25
	done
	# Nothing is to be evicted while faults are measured, no more than by smemv-bench fault.
	write max "$cgroup/memory.high"
}

# swap_in PAIR PROGRAM DEVICE: touch each page once, in random order.
swap_in() {
	mkswap "$3" >/dev/null 2>&1
	swapon "$3"
	swap_out
	run fault "$1" "$2" fio --name=swap-in --filename="$data/file" --size="$((PAGES * 4))k" \
		--ioengine=mmap --rw=randread --bs=4k --thread --invalidate=0 --output-format=json+
	rm -f "$data/file"
	swapoff "$3"
}

measure() {
	local pair
	connect_swaps
	for ((pair = 1; pair <= pairs; pair++)); do
		smemv fault "$pair" fault --pages "$PAGES"
		perftest fault "$pair" ib_read_lat-events ib_read_lat -p 20002 -s 4096 -n "$PAGES" -e
		run fault "$pair" local-fault "$bin-uffd" "$PAGES"
		perftest fault "$pair" ib_read_lat-poll ib_read_lat -p 20001 -s 4096 -n "$PAGES"
		swap_in "$pair" nvme-swap "$nvme_device"
		swap_in "$pair" nbd-swap /dev/nbd0
	done
}

guest serve measure
