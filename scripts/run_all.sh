#!/usr/bin/env bash
# run_all.sh [OPTIONS] [--config.section.field=value ...]: train the papers' grid, a run at a time on each device.
#
#   CIFAR10, CIFAR100, MiniImageNet   widen 0, 1, 2               learning rate 2e-4               seeds 0 to 2
#   Synthetic, ColoredMNIST           widen 0, .0625, .125, .25   learning rates 1e-4, 2e-4, 5e-4  seeds 0 to 9
#
# each in the modes probabilistic-drl and reg-drl, without augmentation and mixup: 534 runs in runs/, as run.sh names them.
#
#   --datasets A,B  --modes A,B  --widens A,B  --rates A,B  --seeds A,B   only these of the grid (default: all)
#   --devices 0,1   GPUs by their number, or cpu (default: CUDA_VISIBLE_DEVICES, else all there are, else the CPU)
#   --index K       only cell K, counted from 0 in the list of --dry-run; its output is shown here
#   --dry-run       list the cells: number, state, step, name
#
# What is finished or being trained is skipped. A job that fails does not stop the others: it is listed at the end, with
# status 1. The output of a job goes to runs/.jobs/NAME.txt. SIGTERM, SIGINT or SIGUSR1 let every run write a checkpoint;
# the same command goes on from there. GPUS=n gives each run n devices.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/names.sh"
source "$ROOT/scripts/grid.sh"

in_grid() {
    true
}
judge() {
    state=${states[$name]:-absent}
}
job() {
    bash "$ROOT/scripts/run.sh" "$dataset" "$AUGMENTATION" "$mode" "$MIXUP" "$widen" "$seed" \
        --config.optimiser.learning_rate="$rate" "${device_option[@]}" "${extra[@]}"
}

grid "$@"
