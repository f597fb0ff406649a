#!/usr/bin/env bash
# run_plot_scores.sh [RUN] [PARAMS] [OPTIONS]: the neural score against the isotropic and the Gaussian one, over levels.
# Defaults: runs/edm-cifar10 gaussian_params. Options are those of linear_structure/compare_scores.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
run=${1:-runs/edm-cifar10}
"$PYTHON" "$ROOT/linear_structure/compare_scores.py" "$run" "${2:-gaussian_params}" "${@:3}"
exec "$PYTHON" "$ROOT/linear_structure/plot_scores.py" "$run"
