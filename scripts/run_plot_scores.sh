#!/usr/bin/env bash
# run_plot_scores.sh [RUN] [PARAMS] [OPTIONS]: the neural score against closed-form ones, over levels; then the figures.
# Defaults: runs/edm-cifar10 gaussian_params. OPTIONS are those that `python linear_structure/compare_scores.py --help`
# lists: further closed forms, trajectories, checkpoints. Given again with others, it adds to what is there. See also
# compare_flows.py, slice_scores.py and map_mixtures.py beside it.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^# /s///p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
run=${1:-runs/edm-cifar10}
"$PYTHON" "$ROOT/linear_structure/compare_scores.py" "$run" "${2:-gaussian_params}" "${@:3}"
exec "$PYTHON" "$ROOT/linear_structure/plot_scores.py" "$run"
