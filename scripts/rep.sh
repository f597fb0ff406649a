#!/usr/bin/env bash
# rep.sh [DATASET] [WIDEN] [LR]: representations of every run that run.sh made with these, without augmentation, in the
# modes probabilistic-drl and reg-drl: every seed present, with mixup or without. Defaults: synthetic 1 2e-4.
# One device, or GPUS=n of them.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^# /s///p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/names.sh"

if [[ $# -gt 3 ]]; then
    echo "error: rep.sh takes DATASET WIDEN LR, got: $*" >&2
    exit 2
fi
dataset=$(canonical "${1:-synthetic}")
widen=$(number "${2:-1}" WIDEN)
rate=$(number "${3:-2e-4}" "learning rate")
launcher

found=0 failed=0
for mode in probabilistic-drl reg-drl; do
    for run in "runs/${dataset}_${widen}_none_${mode}_"*"_${rate}_"*; do
        if [[ -d $run ]]; then
            found=1
            echo "$run"
            "${command[@]}" "$ROOT/diffusion_model/representations.py" "$run" || failed=1
        fi
    done
done
if [[ $found == 0 ]]; then
    echo "error: no run runs/${dataset}_${widen}_none_MODE_MIXUP_${rate}_SEED with MODE probabilistic-drl or reg-drl:" \
        "run \`bash scripts/run.sh $dataset none probabilistic-drl False $widen 0\` first" >&2
    exit 1
fi
exit "$failed"
