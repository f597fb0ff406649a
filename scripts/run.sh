#!/usr/bin/env bash
# run.sh [DATASET] [AUG] [MODE] [MIXUP] [WIDEN] [SEED] [--config.section.field=value ...]: train one model.
# Defaults: synthetic none probabilistic-drl False 1 0, learning rate 2e-4. One device, or GPUS=n of them.
# MODE is probabilistic-drl, reg-drl, noreg-drl, vae-l2, vae-bce, ae-l2, ae-bce or none, each with the preset of
# configs/drl.py for the data set; a model to sample from is better trained with the presets of configs/edm.py.
# The run is runs/DATASET_WIDEN_AUG_MODE_MIXUP_LR_SEED, numbers in shortest form (0.0002); the same command goes on with it.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^# /s///p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/names.sh"

arguments=()
while [[ $# -gt 0 && $1 != --* ]]; do
    arguments+=("$1")
    shift
done
if [[ ${#arguments[@]} -gt 6 ]]; then
    echo "error: run.sh takes DATASET AUG MODE MIXUP WIDEN SEED and then --config options, got: ${arguments[*]}" >&2
    exit 2
fi
defaults=(synthetic none probabilistic-drl False 1 0)
values=("${arguments[@]}" "${defaults[@]:${#arguments[@]}}")

dataset=$(canonical "${values[0]}")
augmentation=${values[1]} mode=${values[2]} seed=${values[5]}
mixup=$(truth "${values[3]}" MIXUP)
widen=$(number "${values[4]}" WIDEN)
rate=2e-4
for option in "$@"; do
    case $option in
        --config.optimiser.learning_rate=*) rate=${option#*=} ;;
        --config.data.name=* | --config.data.augmentation=* | --config.model.mode=* | --config.training.mixup=* | \
            --config.encoder.widen=* | --config.seed=*)
            echo "error: $option: the folder is named after it, give it as one of DATASET AUG MODE MIXUP WIDEN SEED" >&2
            exit 2 ;;
    esac
done
rate=$(number "$rate" "learning rate")

launcher
"$PYTHON" "$ROOT/diffusion_model/prepare_data.py" "$dataset"
exec "${command[@]}" "$ROOT/diffusion_model/main.py" --mode train \
    --config "configs/drl.py:$dataset" \
    --workdir "runs/${dataset}_${widen}_${augmentation}_${mode}_${mixup}_${rate}_${seed}" \
    --config.data.augmentation="$augmentation" \
    --config.model.mode="$mode" \
    --config.training.mixup="$mixup" \
    --config.encoder.widen="$widen" \
    --config.optimiser.learning_rate="$rate" \
    --config.seed="$seed" \
    "$@"
