#!/usr/bin/env bash
# local_cluster.sh start|stop DIR: a Slurm cluster of this machine alone, to try the scripts on; no root is needed.
#
# Needs the programs munged, slurmctld and slurmd (Debian, Ubuntu: apt install slurm-wlm munge). Everything it writes
# lies in DIR, whose path should be short (sockets). After `start`, Slurm's commands find the cluster by
#
#   export SLURM_CONF=DIR/slurm.conf
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help || $# != 2 || ($1 != start && $1 != stop) ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0 || exit 2
fi
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$2"
dir=$(cd "$2" && pwd)

stop() {
    local daemon pid
    for daemon in slurmd slurmctld munged; do
        if [[ -f $dir/$daemon.pid ]] && pid=$(<"$dir/$daemon.pid") && kill "$pid" 2>/dev/null; then
            for _ in {1..50}; do
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.1
            done
        fi
        rm -f "$dir/$daemon.pid"
    done
}

start() {
    local host user port
    for program in munged slurmctld slurmd; do
        if ! command -v "$program" >/dev/null; then
            echo "error: $program is not on the path: install it (Debian, Ubuntu: apt install slurm-wlm munge)" >&2
            exit 1
        fi
    done
    host=$(hostname -s) user=$(id -un) port=$((20000 + $$ % 20000))
    mkdir -p "$dir/state" "$dir/spool"
    chmod 755 "$dir"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    cat >"$dir/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldTimeout=300
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=local Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$dir/slurm.conf
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -c
    slurmd
    for _ in {1..100}; do
        if [[ $(sinfo -h -o %T 2>/dev/null) == idle ]]; then
            sinfo
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    echo "error: the cluster does not answer: see $dir/slurmctld.log and $dir/slurmd.log" >&2
    exit 1
}

stop
if [[ $1 == start ]]; then
    start
fi
