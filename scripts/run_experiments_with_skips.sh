#!/usr/bin/env bash
# run_experiments_with_skips.sh [RUN] [PARAMS] [OPTIONS]: distance against the number of skipped solver steps.
# Defaults: runs/edm-cifar10 gaussian_params. OPTIONS are those that
# `python linear_structure/sweep_skips.py --help` lists; --recommend gives one number in minutes.
# Then `python linear_structure/process_experiments_with_skips.py RUN` makes the figures.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^# /s///p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" "$ROOT/linear_structure/sweep_skips.py" "${1:-runs/edm-cifar10}" "${2:-gaussian_params}" "${@:3}"
