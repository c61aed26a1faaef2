#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whatever dies, at whatever moment: exactly one VM runs afterwards, its memory is right, and the result
# says which one. A cell of the matrix is one migration that is brought to a named point (a fault point
# that waits), where
#   kill     one process is killed, and a daemon is started again at once
#   lose     a daemon is killed, and started again only when smemv-migrate has given up: "unknown"
#   stop     one is stopped for a while
#   signal, cancel   a person interrupts it, by a signal or by smemv-migrate cancel
#   cut      a link is cut for a while, in one direction
# The guest has no disk: no image lock keeps a second VM from running.
#
#   SMEMV_MATRIX=full        all cells; else a random choice in which each point and each victim comes up
#   SMEMV_MATRIX_SEED=N      of that choice; it is printed
#   SMEMV_MATRIX_CELLS="kill:pagerd:fenced ..."   just these
. "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck disable=SC2034 # for scenario.sh
GUEST_MIB=160 TEST_MIB=72 HOT_MIB=8 SWEEP_PPS=16000 BUDGET_KIB=$((48 * 1024))
: "${SMEMV_MATRIX:=subset}" "${SMEMV_MATRIX_SEED:=$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')}" \
	"${SMEMV_MATRIX_CELLS:=}"
SUBSET=16

# The points, in the order of a migration, and who waits there.
POINTS=(prepare sampling round-0 round-n pre-switchover fenced map-confirmed before-commit after-commit
	after-cont)
declare -A WAITER=([fenced]=pagerd [before-commit]=pagerd [after-commit]=pagerd [after-cont]=pagerd)
VICTIMS=(memserverd pagerd destination migrate supervisor)
# Links that are cut at before-commit, each in one direction, from the first to the second.
CUTS=(source-main main-source main-sub1 sub1-main source-sub1 sub1-source)

all_cells() {
	local victim point cut
	for point in "${POINTS[@]}"; do
		for victim in "${VICTIMS[@]}"; do echo "kill:$victim:$point"; done
		for victim in memserverd pagerd; do echo "stop:$victim:$point"; done
	done
	for point in "${POINTS[@]}"; do
		echo "signal:INT:$point"
		echo "cancel:command:$point"
	done
	for cut in "${CUTS[@]}"; do echo "cut:$cut:before-commit"; done
	echo "lose:pagerd:before-commit"
}

# Each point once, each victim and each kind at least once, then whatever comes.
some_cells() {
	all_cells | awk -v seed="$SMEMV_MATRIX_SEED" 'BEGIN { srand(seed) } { print rand() "\t" $0 }' |
		sort -n | cut -f2 | awk -F: -v most="$SUBSET" '
			{ cell[NR] = $0; key[NR] = $3; other[NR] = $1 ":" ($1 == "cut" ? "" : $2) }
			END {
				for (i = 1; i <= NR; i++) if (!seen[key[i]]++ || !had[other[i]]++) { had[other[i]]++; print cell[i]; n++; taken[i] = 1 }
				for (i = 1; i <= NR && n < most; i++) if (!taken[i]) { print cell[i]; n++ }
			}'
}

# ---- who is who ----

victim_pid() {
	case $1 in
	memserverd) echo "${SCENARIO_PID[sub1]}" ;;
	pagerd) echo "${SCENARIO_PID[pagerd]}" ;;
	destination) qemu_in main ;;
	migrate) echo "$MIGRATE_PID" ;;
	supervisor) process_in source "smemv-migrate supervise" ;;
	esac
}

restart() {
	local sub1_mib=$((($(scenario_room_extents) + 1) / 2 * 2))
	case $1 in
	memserverd)
		scenario_gone_and_waited sub1
		: >"$LAB_DIR/sub1.log"
		scenario_start_sub_host sub1 "$SUB1_IP" "$sub1_mib"
		scenario_ready sub1 "$LAB_DIR/sub1.log" ready:
		;;
	pagerd)
		scenario_gone_and_waited pagerd
		cat "$LAB_DIR/pagerd.log" >>"$LAB_DIR/pagerd.before.log"
		: >"$LAB_DIR/pagerd.log"
		scenario_start_pagerd
		scenario_ready pagerd "$LAB_DIR/pagerd.log" ready:
		;;
	esac
}

scenario_gone_and_waited() {
	wait "${SCENARIO_PID[$1]}" 2>/dev/null || :
}

# A cut in one direction, silent on both sides: what HOST sends to IP goes to nobody's address.
declare -A IP_OF=([source]=$SOURCE_IP [main]=$MAIN_IP [sub1]=$SUB1_IP)
cut_link() {
	host_run "${1%-*}" ip neigh replace "${IP_OF[${1#*-}]}" lladdr 02:00:00:00:00:01 dev eth0 nud permanent
}
mend_link() {
	host_run "${1%-*}" ip neigh del "${IP_OF[${1#*-}]}" dev eth0
}

# ---- one cell ----

waiting_host() {
	if [[ ${WAITER[$1]-} == pagerd ]]; then echo main; else echo source; fi
}

arm() {
	local host
	host=$(waiting_host "$1")
	rm -f "$(host_path "$host" "$FAULT_DIR/$1.reached")" "$(host_path "$host" "$FAULT_DIR/$1.go")"
	if [[ $host == main ]]; then
		echo wait >"$(host_path main "$FAULT_DIR/$1.arm")"
		SCENARIO_ENV[migrate]=''
	else
		SCENARIO_ENV[migrate]="SMEMV_FAULT=$1:wait:1 SMEMV_FAULT_DIR=$FAULT_DIR"
	fi
}

point_reached() {
	fault_reached "$(waiting_host "$1")" "$1"
}

release() {
	go_on "$(waiting_host "$1")" "$1"
}

start_migration() {
	local -a environment
	read -r -a environment <<<"${SCENARIO_ENV[migrate]-}"
	host_exec source env "${environment[@]}" "$SMEMV_BIN/migrator/smemv-migrate" run --vm guest \
		--to "$MAIN_IP:7000" --to-vm guest --sub-host "$SUB1_IP:7000" --sub-host "$SUB2_IP:7000" \
		--budget "${BUDGET_KIB}K" --insecure --json --verdict-timeout 10 \
		--max-downtime 1 --max-rounds 3 --on-no-converge stop \
		>"$LAB_DIR/result.json" 2>>"$LAB_DIR/migrate.log" &
	MIGRATE_PID=$!
}

now_ms() {
	python3 -c 'import time; print(int(time.monotonic() * 1000))'
}

# What must come of it: source, main, none (the VM died like any VM whose QEMU is killed), or either.
expected() {
	local kind=$1 victim=$2 point=$3
	case $kind:$victim:$point in
	kill:supervisor:*) echo main ;;
	stop:* | cut:*) echo either ;;
	# The main host has decided already, though it has not said so.
	signal:*:*-commit | signal:*:after-cont | cancel:*:*-commit | cancel:*:after-cont) echo main ;;
	kill:destination:after-cont) echo none ;;
	kill:destination:*) echo source ;;
	kill:migrate:before-commit) echo either ;; # the request to commit is with the main host already
	# Back before anybody missed it, with all data: then it goes on.
	kill:memserverd:fenced | kill:memserverd:map-confirmed | kill:memserverd:before-commit) echo either ;;
	kill:*:after-commit | kill:*:after-cont) echo main ;;
	*) echo source ;;
	esac
}

do_harm() {
	local kind=$1 victim=$2 point=$3 pid
	if [[ $kind == cut ]]; then
		cut_link "$victim"
		release "$point"
		sleep 4
		mend_link "$victim"
		return
	fi
	case $kind in
	signal)
		kill "-$victim" "$MIGRATE_PID"
		sleep 0.2
		release "$point"
		return
		;;
	cancel)
		cancel_by_command "$point"
		return
		;;
	lose)
		lose_pagerd "$point"
		return
		;;
	esac
	pid=$(victim_pid "$victim") || return
	if [[ $kind == stop ]]; then
		kill -STOP "$pid"
		release "$point"
		sleep 3
		kill -CONT "$pid"
	else
		kill -KILL "$pid"
		sleep 0.3
		release "$point"
		restart "$victim"
	fi
}

# It answers when it knows the outcome: 0 the source runs, 1 too late.
cancel_by_command() {
	local cancel status=0
	host_exec source "$SMEMV_BIN/migrator/smemv-migrate" cancel --vm guest --json \
		>"$LAB_DIR/cancel.json" 2>>"$LAB_DIR/migrate.log" &
	cancel=$!
	sleep 0.5
	release "$1"
	wait "$cancel" || status=$?
	echo "     cancel: $(jq -r '.outcomes[0].status' "$LAB_DIR/cancel.json"), exit $status"
	case $1 in
	*-commit | after-cont) [[ $status == 1 ]] ;;
	*) [[ $status == 0 ]] ;;
	esac
}

# While the supervisor asks the pager once more, it is being worked on.
recover_ends_with() {
	local status=0
	host_run source "$SMEMV_BIN/migrator/smemv-migrate" recover --timeout 2 --json \
		>"$LAB_DIR/recover.json" 2>>"$LAB_DIR/migrate.log" || status=$?
	[[ $status == "$1" ]]
}

# Nobody can tell who owns the VM: the source must stay stopped until the pager is back.
lose_pagerd() {
	kill -KILL "${SCENARIO_PID[pagerd]}"
	wait "${SCENARIO_PID[pagerd]}" 2>/dev/null || :
	release "$1"
	scenario_wait 60 "smemv-migrate's end" migration_ended || return
	check "lose $1: the result is unknown" is '.status == "unknown"'
	check "lose $1: the source stays stopped" stays_stopped
	check "lose $1: recover says so, too" scenario_wait 60 "recover" recover_ends_with 5
	check "lose $1: the source still stays stopped" stays_stopped
	restart pagerd
}

migration_ended() {
	! kill -0 "$MIGRATE_PID" 2>/dev/null
}

# Sets WHERE the VM is, by what the programs say: the result, and for what is not settled then, recover.
# An exit status that does not fit is part of it, so that no expectation is met.
learn_outcome() {
	RC=0 WHERE=hanging
	scenario_wait 100 "smemv-migrate's end" migration_ended || return 0
	wait "$MIGRATE_PID" 2>/dev/null || RC=$?
	scenario_wait 60 "the supervisor's end" no_supervisor || return 0
	host_run source "$SMEMV_BIN/migrator/smemv-migrate" recover --json >"$LAB_DIR/recover.json" \
		2>>"$LAB_DIR/migrate.log" || :
	if jq -e '.outcomes | length > 0' "$LAB_DIR/recover.json" >/dev/null; then
		WHERE=$(jq -r '.outcomes[0] |
			if .settled | not then "unknown" elif .committed then "main" else "source" end' \
			"$LAB_DIR/recover.json")
		return
	fi
	WHERE=$(jq -rs 'if length != 1 then "nothing" else .[0] |
		if .status == "unknown" then "unknown" elif .committed then "main" else "source" end end' \
		"$LAB_DIR/result.json")
	case $WHERE:$RC in
	main:0 | source:1 | source:3 | source:4 | unknown:5) ;;
	*) WHERE+=", exit $RC" ;;
	esac
}

no_supervisor() {
	! process_in source "smemv-migrate supervise" >/dev/null
}

# For ten seconds it gets on, without a mismatch, and then has verified all of its memory once. What
# was killed may still be on its way back at first.
lives_on() {
	local host=$1 quarter before sweeps
	before=$(last_heartbeat "$host" n) || :
	scenario_wait 20 "a heartbeat on $host" heartbeat_beyond "$host" n $((${before:-0} + 1)) || return
	sweeps=$(grep -ac 'SWEEP n=' "$LAB_DIR/$host.console") || :
	for quarter in 1 2 3 4; do
		before=$(last_heartbeat "$host" n)
		sleep 2.5
		(($(last_heartbeat "$host" n) > ${before:-0})) ||
			scenario_error "no heartbeat on $host in quarter $quarter of 10 s" || return
	done
	scenario_wait 60 "a whole sweep on $host" swept "$host" $((sweeps + 2)) || return
	[[ $(last_heartbeat "$host" mismatches) == 0 ]] || scenario_error "mismatches on $host"
}

swept() {
	(($(grep -ac 'SWEEP n=' "$LAB_DIR/$1.console") >= $2))
}

stays_stopped() {
	qmp source query-status | jq -e '.running == false' >/dev/null && silent_on source
}

no_leases_or_files() {
	scenario_wait 20 "the release of all leases" scenario_no_leases &&
		[[ -z $(host_run source find /run/smemv/migrations -mindepth 1) ]]
}

cell() {
	local kind=$1 victim=$2 point=$3 want where start name="$1 $2 at $3"
	want=$(expected "$@")
	start=$(now_ms)
	arm "$point"
	start_migration
	if ! scenario_wait 60 "point $point" point_reached "$point"; then
		check "$name: the point was reached" false
		FRESH=no
		return
	fi
	REACHED[$point]=yes
	do_harm "$@" || check "$name: the victim was there" false
	learn_outcome
	where=$WHERE
	echo "     $name: $where (exit $RC), expected $want"
	check "$name: the result tells where the VM is" test "$where" = source -o "$where" = main
	case $want in
	none) check "$name: it was committed" test "$where" = main ;;
	either) ;;
	*) check "$name: it is at the $want" test "$where" = "$want" ;;
	esac
	if [[ $want == none ]]; then
		check "$name: the source is not started again" stays_stopped
	elif [[ $where == source || $where == main ]]; then
		check "$name: the VM lives on there, verified" lives_on "$where"
		check "$name: never two VMs" python3 "$E2E_DIR/exclusive.py" "$where" "$start" \
			"$LAB_DIR/source.console" "$LAB_DIR/main.console"
		[[ $where != main ]] || check "$name: the source stays stopped" stays_stopped
	fi
	check "$name: the source's capabilities are as before" capabilities_untouched
	clean_up "$where" "$want" "$name"
}

declare -A REACHED=()

# Ready for the next cell. A source that runs on is used again.
clean_up() {
	local where=$1 want=$2 name=$3
	scenario_end main-vm TERM || :
	rm -f "$(host_path main /dev/shm/main.ram)"
	if [[ $where != source || $want == none || $E2E_FAILED -ne 0 ]]; then
		scenario_end source-vm TERM || :
		rm -f "$(host_path source /dev/shm/source.ram)"
	fi
	check "$name: no lease and no journal is left" no_leases_or_files
	FRESH=no
}

make_fresh() {
	[[ ${FRESH-} != no ]] || {
		[[ -n ${SCENARIO_PID[source-vm]-} ]] || { mark source; scenario_start_source; }
		scenario_start_destination
		scenario_wait 30 "the destination's registration" scenario_registered || return
		scenario_wait 60 "a heartbeat on source" heartbeat_since source || return
	}
	FRESH=yes
}

# Consoles only grow: what was there before does not count.
declare -A MARK=([source]=0)
mark() {
	MARK[$1]=$(wc -l <"$LAB_DIR/$1.console")
}
heartbeat_since() {
	grep -aq 'HB n=' < <(tail -n +$((MARK[$1] + 1)) "$LAB_DIR/$1.console")
}

echo "seed $SMEMV_MATRIX_SEED (SMEMV_MATRIX_SEED)"
if [[ -n $SMEMV_MATRIX_CELLS ]]; then
	read -r -a cells <<<"$SMEMV_MATRIX_CELLS"
elif [[ $SMEMV_MATRIX == full ]]; then
	mapfile -t cells < <(all_cells)
else
	mapfile -t cells < <(some_cells)
fi
echo "${#cells[@]} cells"
SCENARIO_ENV[pagerd]="SMEMV_FAULT=fenced:arm,before-commit:arm,after-commit:arm,after-cont:arm SMEMV_FAULT_DIR=$FAULT_DIR"
up
for c in "${cells[@]}"; do
	IFS=: read -r kind victim point <<<"$c"
	make_fresh
	began=$SECONDS
	cell "$kind" "$victim" "$point"
	echo "     $((SECONDS - began)) s"
done
if [[ -z $SMEMV_MATRIX_CELLS ]]; then
	for point in "${POINTS[@]}"; do
		check "some cell was at $point" test -n "${REACHED[$point]-}"
	done
fi
down
