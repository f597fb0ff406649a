#!/usr/bin/env bash
# classify.sh [OPTIONS] [-- OPTIONS of classify.py]: classify the labels of From Points to Functions' grid, from the
# representations that rep_all.sh has made, one run at a time on each device.
#
#   CIFAR10, CIFAR100, MiniImageNet   widen 1, 2   learning rate 2e-4   seeds 0 to 2
#
# each in the modes probabilistic-drl and reg-drl: 36 runs, to runs/NAME/classify/. Heads mlp, gru and transformer at
# granularities 1, 2, 5, 7, 10, 17, 25, 37 and 50, with the options of classify.py as they stand; what follows -- is added.
#
# OPTIONS are those of run_all.sh, which its --help lists; the step that --dry-run shows is that of the training.
#
# What is classified with the same options is skipped; a run that is not trained, or not encoded, and a job that fails,
# are listed at the end, with status 1. The output of a job goes to runs/.jobs/NAME.txt. The same command goes on with what
# is missing. A job takes one device. Afterwards: python downstream_classification/tabulate.py runs/cifar10_*.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/names.sh"
source "$ROOT/scripts/grid.sh"

GPUS=1 # classify.py is one process
GRID=(--granularity 1 2 5 7 10 17 25 37 50)

in_grid() {
    [[ $widen != 0 && ($set == CIFAR10 || $set == CIFAR100 || $set == MiniImageNet) ]]
}
# stamp: what was asked for, and of which representations; written beside the cells when all of them are there
stamp() {
    echo "${GRID[*]} ${extra[*]}"
    cat "runs/$name/trajectories/encoder/"{train,test}/meta.json 2>/dev/null | cksum
}
judge() {
    if [[ ${states[$name]:-absent} != finished ]]; then
        state=untrained
    elif [[ ${missing[$name]} == *,trajectories,* ]]; then
        state=unencoded
    elif [[ ${missing[$name]} != *,classify,* && $(cat "runs/$name/classify/.done" 2>/dev/null) == "$(stamp)" ]]; then
        state=finished
    else
        state=pending
    fi
}
job() {
    local before
    before=$(stamp)
    "$PYTHON" "$ROOT/downstream_classification/classify.py" "runs/$name/trajectories/encoder" "${GRID[@]}" \
        "${device_option[@]}" "${extra[@]}" || return
    mkdir -p "runs/$name/classify"
    echo "$before" >"runs/$name/classify/.done"
}

grid "$@"
