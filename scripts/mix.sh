#!/usr/bin/env bash
# mix.sh RUN [PRESET] [-- OPTIONS of classify.py]: does a head that mixes times beat the best single time? Every head
# on every source of a trained run, with a preset of configs/mixing.py: protocol (the paper's sizes; the default), cores (two
# CPU cores), smoke.
#
#   a run with an encoder      the trained encoder with all heads; untrained encoder, pixels and PCA with heads of one time
#   a run of mode none         every block of its score network with the first head, the best with all; pixels and PCA
#
# Writes RUN/trajectories/, RUN/classify/ and tables/accuracy_NAME.{md,tex,png,csv,json} in the current folder. What is done
# is skipped: the same command goes on after an interruption. What follows -- is added to every classification, such as
# --attributes digit. Before another preset, remove RUN/classify. One device, or GPUS=n of them for the representations.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/names.sh"

given=()
while [[ $# -gt 0 && $1 != -- ]]; do
    given+=("$1")
    shift
done
if [[ ${#given[@]} == 0 || ${#given[@]} -gt 2 || ${given[*]} == *" -"* || ${given[0]} == -* ]]; then
    echo "error: mix.sh takes RUN [PRESET] [-- OPTIONS of classify.py], got: ${given[*]}" >&2
    exit 2
fi
run=${given[0]%/}
config=(--config "configs/mixing.py:${given[1]:-protocol}")
if [[ ! -f $run/config.json ]]; then
    echo "error: $run is no run: expected a folder with config.json, as main.py --mode train writes it" >&2
    exit 1
fi

floors=(pixels pca)
launcher
if grep -q '"model.mode": "none"' "$run/config.json"; then
    "${command[@]}" "$ROOT/diffusion_model/representations.py" "$run" "${config[@]}" --sources blocks "${floors[@]}"
    mixing=("$run/trajectories/block-"*)
else
    "${command[@]}" "$ROOT/diffusion_model/representations.py" "$run" "${config[@]}" --sources encoder untrained "${floors[@]}"
    mixing=("$run/trajectories/encoder")
    floors=(untrained "${floors[@]}")
fi
classify=("$PYTHON" "$ROOT/downstream_classification/classify.py" "${config[@]}")
"${classify[@]}" "${floors[@]/#/$run/trajectories/}" --heads mlp linear "${@:2}"
"${classify[@]}" "${mixing[@]}" --best-store "${@:2}"
"$PYTHON" "$ROOT/downstream_classification/tabulate.py" "$run"
