#!/usr/bin/env bash
# submit.sh run_all|rep_all|classify [OPTIONS of that script] [OPTIONS of sbatch]: the cells that are not done, as one Slurm array.
#
#   bash scripts/slurm/submit.sh run_all --datasets CIFAR10 --gres=gpu:1 --cpus-per-task=4 --mem=16G --time=24:00:00
#   bash scripts/slurm/submit.sh rep_all --gres=gpu:1 --time=4:00:00 --dependency=afterany:JOB
#
# --datasets, --modes, --widens, --rates, --seeds and --config.section.field=value choose cells as in run_all.sh; all
# other options go to sbatch. Two minutes before its time limit a task writes a checkpoint and is queued again, and goes
# on from there; with --signal=B:USR1@SECONDS it is told so earlier. Of several GPUs in a task, its run uses all.
# --dry-run lists the cells that would be submitted. The output of task K of JOB is runs/.jobs/slurm-JOB_K.txt. Where
# nodes need modules or an environment, load it before, or set PYTHON.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

script=${1:-}
if [[ $script != run_all && $script != rep_all && $script != classify ]]; then
    echo "error: submit.sh takes run_all, rep_all or classify first, got ${script:-nothing} (see --help)" >&2
    exit 2
fi
shift
cells=() options=() dry=""
while [[ $# -gt 0 ]]; do
    case $1 in
        --datasets=* | --modes=* | --widens=* | --rates=* | --seeds=* | --config.*) cells+=("$1") ;;
        --datasets | --modes | --widens | --rates | --seeds) cells+=("$1" "${2:-}"); shift ;;
        --dry-run) dry=1 ;;
        *) options+=("$1") ;;
    esac
    shift
done
if [[ -z $dry ]] && ! command -v sbatch >/dev/null; then
    echo "error: sbatch is not on the path: submit where Slurm is, or run \`bash scripts/$script.sh\` on this machine" >&2
    exit 1
fi

listed=$(bash "$here/../$script.sh" "${cells[@]}" --dry-run)
undone=$(awk '$2 != "finished" && $2 != "running" && $2 !~ /^un(trained|encoded)$/' <<<"$listed")
numbers=$(awk '{ print $1 }' <<<"$undone" | paste -s -d ,)
if [[ -z $numbers ]]; then
    echo "nothing to submit:$(awk '{ print $2 }' <<<"$listed" | sort | uniq -c | paste -s -d , | tr -s ' ')"
    exit 0
fi
if [[ -n $dry ]]; then
    echo "$undone"
    exit 0
fi
# 1-3 in place of 1,2,3: a list of hundreds of numbers is too long for some versions of Slurm
array=$(tr , '\n' <<<"$numbers" | awk '
    NR > 1 && $1 == last + 1 { last = $1; next }
    NR > 1 { printf "%s%s,", first, (last > first ? "-" last : "") }
    { first = last = $1 }
    END { printf "%s%s", first, (last > first ? "-" last : "") }')
mkdir -p runs/.jobs
# the defaults come first: sbatch takes the last of an option that is given twice
sbatch --array="$array" --job-name="$script" --requeue --signal=B:USR1@120 --open-mode=append \
    --output="runs/.jobs/slurm-%A_%a.txt" "${options[@]}" "$here/task.sh" "$here/../.." "$script" "${cells[@]}"
