#!/usr/bin/env bash
# rep_all.sh [OPTIONS] [-- OPTIONS of representations.py]: encode the runs of the papers' grid that run_all.sh has trained,
# one at a time on each device.
#
#   CIFAR10, CIFAR100, MiniImageNet   widen 1, 2                  learning rate 2e-4               seeds 0 to 2
#   Synthetic, ColoredMNIST           widen 0, .0625, .125, .25   learning rates 1e-4, 2e-4, 5e-4  seeds 0 to 9
#
# each in the modes probabilistic-drl and reg-drl: 516 runs, to runs/NAME/trajectories/.
#
# OPTIONS are those of run_all.sh, which its --help lists; the step that --dry-run shows is that of the training.
#
# What is encoded is skipped; a run that is not trained to its end, and a job that fails, are listed at the end, with
# status 1. The output of a job goes to runs/.jobs/NAME.txt. The same command goes on with what is missing. GPUS=n gives
# each run n devices.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/names.sh"
source "$ROOT/scripts/grid.sh"

in_grid() {
    [[ $widen != 0 || $set == Synthetic || $set == ColoredMNIST ]]
}
judge() {
    if [[ ${states[$name]:-absent} != finished ]]; then
        state=untrained
    elif [[ ${missing[$name]} == *,trajectories,* ]]; then
        state=pending
    else
        state=finished
    fi
}
job() {
    launcher
    "${command[@]}" "$ROOT/diffusion_model/representations.py" "runs/$name" "${device_option[@]}" "${extra[@]}"
}

grid "$@"
