#!/usr/bin/env bash
# task.sh ROOT run_all|rep_all|classify [OPTIONS]: one task of the array that submit.sh submits; Slurm runs a copy of this file.
#
# Slurm sends SIGUSR1 before the time limit. The cell is then told to stop (SIGTERM, which torchrun hands on to its ranks
# too): it writes a checkpoint, and the task is queued again. A task that is cancelled or preempted is told to stop as
# well, and not queued again from here.
set -euo pipefail
root=$1 script=$2
shift 2

export GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-1}}
if [[ $GPUS == 0 ]]; then # as Slurm says on a node without any
    GPUS=1
fi
requeue=0
trap 'requeue=1; kill -TERM "$cell" 2>/dev/null || true' USR1
trap 'kill -TERM "$cell" 2>/dev/null || true' TERM
echo "task $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_JOB_ID on ${SLURMD_NODENAME:-?}, start ${SLURM_RESTART_COUNT:-0}"

bash "$root/scripts/$script.sh" "$@" --index="$SLURM_ARRAY_TASK_ID" &
cell=$!
while kill -0 "$cell" 2>/dev/null; do # a signal ends `wait` before the cell has ended
    wait "$cell" || true
done
status=0
wait "$cell" || status=$? # of a cell that has ended
if [[ $requeue == 1 && ($status == 130 || $status == 143) ]]; then
    echo "queued again: it goes on from its checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
