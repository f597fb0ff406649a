#!/usr/bin/env bash
# reproduce.sh [PRESET] [WORKDIR]: the environment, then a whole study, from data to report.html in WORKDIR.
#
#   embedded      small synthetic images; about 11 minutes on 2 CPU cores, offline (the default; WORKDIR: .)
#   FashionMNIST  28 x 28 clothes;        about 45 minutes on 2 CPU cores     (WORKDIR: studies/FashionMNIST)
#   smoke         a check of the pipeline; about 1 minute                     (WORKDIR: studies/smoke)
#
# Stages that are done are skipped: run the same command to go on after an interruption. To do a stage and those after
# it again, remove WORKDIR/.stages/STAGE.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

#                            data set      models              duration
case ${1:-embedded} in
    embedded)     study=(synthetic16   synthetic16-study   "about 11 minutes on 2 CPU cores") ;;
    FashionMNIST) study=(fashion_mnist fashion_mnist-study "about 45 minutes on 2 CPU cores") ;;
    smoke)        study=(synthetic16   smoke               "about 1 minute") ;;
    *)
        echo "error: no preset ${1@Q}; accepted: embedded, FashionMNIST, smoke" >&2
        exit 2
        ;;
esac
preset=${1:-embedded}
data=${study[0]}
edm=runs/edm-$data
drl=runs/drl-$data
workdir=.
if [[ $preset != embedded ]]; then
    workdir=studies/$preset
fi
workdir=${2:-$workdir}

mkdir -p "$workdir/.stages"
cd "$workdir"
if [[ -f .stages/preset && $(<.stages/preset) != "$preset" ]]; then
    echo "error: $PWD holds the study $(<.stages/preset): give $preset a folder of its own," \
        "bash scripts/reproduce.sh $preset WORKDIR" >&2
    exit 1
fi
echo "$preset" >.stages/preset
echo "$preset in $PWD: ${study[2]}, $(find .stages -type f ! -name preset | wc -l) stages done already"

: >commands.txt # for the report: what was run here, paths from the project's root

# stage NAME COMMAND [ARGUMENTS]: run a command of the project once; after a stage that ran, the later ones of its lane run too
ran=0
stage() {
    local name=$1 key began=$SECONDS
    shift
    key=$(printf '%s\n' "$@" | sha256sum)
    echo "python $*" >>commands.txt
    if [[ $ran == 0 && -f .stages/$name && $(<".stages/$name") == "$key" ]]; then
        echo "skipped $name"
        return
    fi
    ran=1
    rm -f ".stages/$name"
    if ! "$PYTHON" "$ROOT/$1" "${@:2}"; then
        echo "error: stopped in $name: run the same command to go on from here" >&2
        exit 1
    fi
    echo "$key" >".stages/$name"
    echo "done $name ($((SECONDS - began)) s)"
}
# analysis NAME COMMAND [ARGUMENTS]: a stage whose options stand in the study's preset
analysis() {
    stage "$@" --config "configs/study.py:$preset"
}

# Two lanes side by side, half of the cores each: small networks use two cores better as two processes than as threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}

sampling() {
    stage    train-edm        diffusion_model/main.py --mode train --config "configs/edm.py:${study[1]}" --workdir "$edm"
    analysis features         diffusion_model/train_features.py "$data"
    analysis gaussian         linear_structure/get_parameters.py "$data" gaussian gaussian_params
    analysis sweep            linear_structure/sweep_skips.py "$edm" gaussian_params
    analysis skips            linear_structure/process_experiments_with_skips.py "$edm"
    analysis scores           linear_structure/compare_scores.py "$edm" gaussian_params
    analysis plot-scores      linear_structure/plot_scores.py "$edm"
}
representing() {
    stage    train-drl        diffusion_model/main.py --mode train --config "configs/drl.py:${study[1]}" --workdir "$drl"
    analysis representations  diffusion_model/representations.py "$drl"
    analysis classify         downstream_classification/classify.py "$drl/trajectories/encoder"
    analysis classify-untrained downstream_classification/classify.py "$drl/trajectories/untrained" --heads mlp
    analysis classify-pixels  downstream_classification/classify.py "$drl/trajectories/pixels"
    analysis tabulate         downstream_classification/tabulate.py "$drl"
    analysis information      qualitative_analysis/estimate_mi.py "$drl/trajectories/encoder"
    analysis attention        qualitative_analysis/profile_attention.py "$drl"
}

stage data diffusion_model/prepare_data.py "$data"
sampling 2> >(cat >&2) & # through cat: two progress bars would fight for one terminal line
lanes=$!
representing 2> >(cat >&2) &
lanes+=" $!"
trap 'kill 0' TERM INT # a lane writes its checkpoint and leaves
status=0
for lane in $lanes; do
    wait "$lane" || status=1
done
trap - TERM INT
if [[ $status != 0 ]]; then
    exit 1
fi
rm -f .stages/report # always written anew; the preset says whether its check decides the status
analysis report qualitative_analysis/write_report.py .
