#!/bin/bash
# Run a two-node Slurm on this host, to try slurm/*.sh without a cluster.
#
#   tools/local_slurm.sh up [ROOT]           start it unless it runs, and print the `export SLURM_CONF=...` to use it
#   tools/local_slurm.sh status [ROOT]       print the nodes; exit code 0 if it runs, 1 if not
#   tools/local_slurm.sh crash NODE [ROOT]   kill n1 or n2 and everything on it, like a power failure
#   tools/local_slurm.sh boot NODE [ROOT]    start a crashed node again
#   tools/local_slurm.sh down [ROOT]         end its jobs and daemons and remove ROOT
#
# Nodes n1 and n2 claim 64 cores and 8 GPUs each; the GPUs are mere device files, so programs run on the CPU. There is
# no systemd and no database (so no `sacct`). All files are under ROOT, by default ${TMPDIR:-/tmp}/trelm-slurm-<uid>.
# Ports are derived from ROOT; TRELM_SLURM_PORT=N uses N, N+1 and N+2 instead.
set -euo pipefail

fail() { echo "local_slurm: $2" >&2; exit "$1"; }

[[ ${1:-} =~ ^(up|down|status|crash|boot)$ ]] || fail 2 "usage: $0 up|down|status [ROOT], or crash|boot NODE [ROOT]"
command=$1
if [[ $command == crash || $command == boot ]]; then
    node=${2:-}
    [[ $node == n[12] ]] || fail 2 "usage: $0 $command n1|n2 [ROOT]"
    shift
fi
[[ $# -le 2 ]] || fail 2 "one ROOT at most, got: ${*:2}"
root=$(realpath -m "${2:-${TMPDIR:-/tmp}/trelm-slurm-$UID}")
conf=$root/slurm.conf
socket=$root/munge.socket
marker=$root/.trelm-local-slurm               # `down` refuses folders without this file
daemons=(munged slurmctld n1 n2)              # each has $root/run/NAME.pid
# Jobs inherit SLURM_CONF, by which `down` finds them.
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$conf

# alive NAME: tells whether a daemon runs. A pid file may be stale and its number reused, so the process's command line
# must name our ROOT.
alive() {
    local pid
    pid=$(cat "$root/run/$1.pid" 2>/dev/null) && [[ $pid =~ ^[0-9]+$ ]] &&
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$root/"
}

all_alive() {
    local name
    for name in "${daemons[@]}"; do alive "$name" || return 1; done
}

# until_true SECONDS COMMAND...: polls until the command succeeds; returns 1 if it never does.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

idle_nodes() { [[ $(timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated)$') == 2 ]]; }
no_jobs() { [[ -z $(timeout 5 squeue -h 2>/dev/null) ]]; }

# pids_where TEST: prints the processes with our SLURM_CONF that pass a test of their environment ($env, one variable per
# line) and their folder in /proc ($dir). This also finds processes whose daemons are gone.
pids_where() {
    local dir env
    for dir in /proc/[0-9]*; do
        env=$(tr '\0' '\n' 2>/dev/null <"$dir/environ") || continue
        grep -qxF "SLURM_CONF=$conf" <<<"$env" && "$1" && echo "${dir#/proc/}"
    done
    return 0
}

of_a_job() { grep -q '^SLURM_JOB_ID=' <<<"$env" || [[ $(readlink "$dir/exe") =~ /slurmstepd(-wlm)?$ ]]; }
of_a_daemon() { [[ $(readlink "$dir/exe") =~ /(slurmctld|slurmd|slurmstepd|munged)(-wlm)?$ ]]; }
# slurmd inherits TRELM_LOCAL_NODE and jobs have SLURMD_NODENAME; slurmstepd has neither, but keeps its node's log open.
of_the_node() {
    grep -qxE "(TRELM_LOCAL_NODE|SLURMD_NODENAME)=$node" <<<"$env" ||
        { of_a_daemon && [[ -n $(find "$dir/fd" -lname "$root/log/$node.log" 2>/dev/null) ]]; }
}

# killed TEST: kills the processes that pass; fails as long as it finds any, because they take a moment to disappear.
killed() {
    local pids
    mapfile -t pids < <(pids_where "$1")
    [[ ${#pids[@]} == 0 ]] && return 0
    kill -KILL "${pids[@]}" 2>/dev/null || true
    return 1
}

start_node() {
    TRELM_LOCAL_NODE=$1 slurmd -f "$conf" -N "$1" || fail 1 "slurmd did not start, see $root/log/$1.log"
}

write_config() {
    local host user number port gpus
    host=$(hostname -s)
    user=$(id -un)
    number=$(($(cksum <<<"$root" | cut -d' ' -f1) % 5000))
    port=${TRELM_SLURM_PORT:-$((17000 + number * 3))}
    mkdir -p "$root"/{run,log,state,dev,spool/n1,spool/n2}
    chmod 755 "$root"  # munged refuses a socket that others could not reach
    gpus="/dev/tty[0-7]"  # any device file works; with regular files CUDA_VISIBLE_DEVICES would stay empty
    if [[ $UID == 0 ]]; then
        gpus="$root/dev/nvidia[0-7]"
        for i in {0..7}; do [[ -e $root/dev/nvidia$i ]] || mknod -m 666 "$root/dev/nvidia$i" c 1 3; done
    fi
    [[ -s $root/munge.key ]] || (umask 077; head -c 1024 /dev/urandom >"$root/munge.key")
    cat >"$root/gres.conf" <<END
AutoDetect=off
NodeName=n[1-2] Name=gpu File=$gpus
END
    cat >"$conf" <<END
ClusterName=trelm-local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
# jobs of two clusters on this host must not meet: their ranks' port follows from the job's number
FirstJobId=$((number + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
# listen on the loopback address only
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# believe the sizes below, whatever this host has
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=15
MinJobAge=600
SlurmdTimeout=10
EnforcePartLimits=ALL
GresTypes=gpu
NodeName=DEFAULT Sockets=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:8 State=UNKNOWN
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1))-$((port + 2))
PartitionName=test Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
END
}

up() {
    local need missing=() name
    for need in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge; do
        command -v "${need%:*}" >/dev/null || missing+=("${need#*:}")
    done
    [[ ${#missing[@]} == 0 ]] ||
        fail 2 "missing Debian packages: apt-get install -y --no-install-recommends ${missing[*]}"
    ((${#socket} < 100)) || fail 2 "ROOT is too long for a socket path (108 bytes): give a shorter one than $root"
    [[ ! -e $root || -e $marker || -z $(ls -A "$root") ]] || fail 2 "$root is not empty: give another ROOT"
    if ! all_alive; then
        stop
        rm -rf "$root"/{state,spool}  # a half-dead cluster starts from scratch, without its jobs
        mkdir -p "$root" && touch "$marker"
        write_config
        munged --force --key-file "$root/munge.key" --socket "$socket" --pid-file "$root/run/munged.pid" \
            --seed-file "$root/munge.seed" --log-file "$root/log/munged.log" 2>"$root/log/munged.err" ||
            fail 1 "munged did not start: $(tail -n 1 "$root/log/munged.err")"
        until_true 10 test -S "$socket" || fail 1 "munged did not start, see $root/log/munged.log"
        slurmctld -f "$conf" -i || fail 1 "slurmctld did not start, see $root/log/slurmctld.log"
        for name in n1 n2; do start_node "$name"; done
    fi
    until_true 30 idle_nodes || fail 1 "the nodes did not come up, see $root/log"
    echo "export SLURM_CONF=$conf"
}

# Ends jobs and daemons but leaves the files.
stop() {
    local name
    if alive slurmctld; then
        timeout 10 scancel --user="$(id -un)" || true
        until_true 15 no_jobs || true
    fi
    until_true 10 killed of_a_job || true
    for name in n2 n1 slurmctld munged; do
        alive "$name" || continue
        kill -TERM "$(cat "$root/run/$name.pid")" 2>/dev/null || true
        until_true 10 dead "$name" || kill -KILL "$(cat "$root/run/$name.pid")" 2>/dev/null || true
    done
    until_true 10 killed of_a_daemon || true  # daemons remove their pid files before they exit
    rm -f "$root"/run/*.pid
}

dead() { ! alive "$1"; }

up_node() { [[ $(timeout 5 sinfo -h -n "$node" -o %T 2>/dev/null) =~ ^(idle|mixed|allocated)$ ]]; }

case $command in
up) up ;;
crash)
    alive slurmctld || fail 1 "not running under $root"
    until_true 10 killed of_the_node || fail 1 "$node: some of its processes do not go"
    rm -f "$root/run/$node.pid"
    ;;
boot)
    alive slurmctld || fail 1 "not running under $root"
    alive "$node" || start_node "$node"
    until_true 60 up_node || fail 1 "$node did not come up, see $root/log/$node.log"
    ;;
status)
    all_alive || fail 1 "not running under $root"
    sinfo -N -o "%N %T %C %G"
    echo "export SLURM_CONF=$conf"
    ;;
down)
    [[ -e $root ]] || exit 0
    [[ -e $marker ]] || fail 2 "$root was not made by '$0 up': not touched"
    stop
    rm -rf "$root"
    ;;
esac
