#!/usr/bin/env bash
# run_experiments_with_skips.sh [RUN] [PARAMS] [OPTIONS]: distance against the number of skipped solver steps.
# Defaults: runs/edm-cifar10 gaussian_params. Options are those of linear_structure/sweep_skips.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" "$ROOT/linear_structure/sweep_skips.py" "${1:-runs/edm-cifar10}" "${2:-gaussian_params}" "${@:3}"
