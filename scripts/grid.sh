# Sourced by run_all.sh, rep_all.sh and classify.sh: the papers' grid, which is listed here alone, the options that choose
# from it, and how its jobs are shared over the devices. A script that sources it defines what is its own:
#
#   in_grid     whether the cell is one of its own
#   judge       sets `state` of the cell: finished and running are skipped, untrained and unencoded are errors, all else is run
#   job         runs the cell, with the options in device_option and extra
#
# The cell is in `set dataset mode widen rate seed`, and in `name` of its run; then it calls `grid "$@"`.

SETS=(CIFAR10 CIFAR100 MiniImageNet Synthetic ColoredMNIST)
MODES=(probabilistic-drl reg-drl)
AUGMENTATION=none
MIXUP=False

# axes SET: widen factors, learning rates and seeds
axes() {
    case $1 in
        CIFAR10 | CIFAR100 | MiniImageNet)
            widens=(0 1 2)              rates=(2e-4)           seeds=(0 1 2) ;;
        Synthetic | ColoredMNIST)
            widens=(0 .0625 .125 .25)   rates=(1e-4 2e-4 5e-4) seeds=(0 1 2 3 4 5 6 7 8 9) ;;
    esac
}

# cells: a line a cell, the first seed of everything first
cells() {
    local disk
    mapfile -t disk < <(canonical "${SETS[@]}" || echo "error")
    if [[ ${disk[0]} == error ]]; then
        return 1
    fi
    for index in "${!SETS[@]}"; do
        set=${SETS[index]} dataset=${disk[index]}
        axes "$set"
        for seed in "${seeds[@]}"; do for mode in "${MODES[@]}"; do for widen in "${widens[@]}"; do
            for rate in "${rates[@]}"; do
                LC_ALL=C printf -v widen %g "$widen"
                LC_ALL=C printf -v rate %g "$rate"
                if in_grid; then
                    echo "$set $dataset $mode $widen $rate $seed"
                fi
            done
        done; done; done
    done | sort -s -n -k 6,6
}

# choose OPTION VALUES COLUMN: keep the cells whose COLUMN is one of the comma-separated VALUES, which must occur
choose() {
    local option=$1 column=$3 value there wanted=" "
    there=$(awk -v column="$column" '!seen[$column]++ { print $column }' <<<"$all" | tr '\n' ' ')
    for value in ${2//,/ }; do
        case $option in
            --datasets) value=$(canonical "$value") || exit ;;
            --widens | --rates) value=$(number "$value" "$option") || exit ;;
        esac
        if [[ $option == --index && " $there" != *" $value "* ]]; then
            echo "error: $option: no cell of the grid has $value; accepted: 0 to $(($(wc -l <<<"$all") - 1))" >&2
            exit 2
        fi
        if [[ " $there" != *" $value "* ]]; then
            echo "error: $option: no cell of the grid has $value; accepted: $there" >&2
            exit 2
        fi
        wanted+="$value "
    done
    chosen=$(awk -v column="$column" -v wanted="$wanted" 'index(wanted, " " $column " ")' <<<"$chosen")
}

# find_devices: sets `devices`, a slot for jobs each: groups of GPUS devices, or one slot for what torch finds
find_devices() {
    local visible size=${GPUS:-1} start
    if [[ -z ${devices:-} ]]; then
        devices=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -s -d , || true)}
    fi
    IFS=, read -ra visible <<<"$devices"
    devices=()
    for ((start = 0; start + size <= ${#visible[@]}; start += size)); do
        devices+=("$(IFS=,; echo "${visible[*]:start:size}")")
    done
    if [[ ${#visible[@]} == 1 && ${visible[0]} == cpu ]]; then
        devices=(cpu)
    elif [[ ${#devices[@]} == 0 && ${#visible[@]} -gt 0 ]]; then
        echo "error: GPUS=$size, but there are ${#visible[@]} devices: ${visible[*]}" >&2
        exit 2
    elif [[ ${#devices[@]} == 0 ]]; then
        devices=(auto)
    fi
}

# start SLOT: the cell's job in a process group of its own; its status is left in a file when it ends
start() {
    echo "started $name (device ${devices[$1]})"
    (
        trap : TERM INT # the job gets the signal too, and ends by itself
        device_option=()
        case ${devices[$1]} in
            auto) ;;
            cpu) device_option=(--device=cpu) ;;
            *) export CUDA_VISIBLE_DEVICES=${devices[$1]} ;;
        esac
        status=0
        if [[ -n $single ]]; then
            job || status=$?
        else
            mkdir -p runs/.jobs
            job >>"runs/.jobs/$name.txt" 2>&1 || status=$?
        fi
        echo "$status" >"$scratch/$1.new"
        mv "$scratch/$1.new" "$scratch/$1"
    ) &
    process[$1]=$! running[$1]=$name began[$1]=$SECONDS rested=0
}

# collect: note which jobs have ended, and free their slots
collect() {
    local slot status
    for slot in "${!process[@]}"; do
        if [[ -f $scratch/$slot ]]; then
            status=$(<"$scratch/$slot")
        elif ! kill -0 "${process[slot]}" 2>/dev/null && [[ ! -f $scratch/$slot ]]; then
            status=137 # its shell was killed
        else
            continue
        fi
        case $status in
            0) echo "done ${running[slot]} ($((SECONDS - began[slot])) s)" ;;
            130 | 143) echo "stopped ${running[slot]}"; undone+=("${running[slot]} (stopped)") ;;
            *) echo "failed ${running[slot]}${single:-: see runs/.jobs/${running[slot]}.txt}"
                undone+=("${running[slot]} (failed)") ;;
        esac
        rm -f "$scratch/$slot"
        unset "process[slot]"
    done
}

# forward: hand a signal on to the jobs, which write checkpoints and leave
forward() {
    local pid
    stopping=1
    for pid in "${process[@]}"; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
}

# free_slot: sets `slot` to one without a job, and waits for it
free_slot() {
    while :; do
        collect
        for slot in "${!devices[@]}"; do
            if [[ -z ${process[slot]:-} ]]; then
                return
            fi
        done
        nap
    done
}

# nap: a moment that a signal ends; longer each time, up to a second
naps=(0.05 0.1 0.2 0.5 1)
nap() {
    sleep "${naps[rested < 4 ? rested : 4]}" &
    wait $! || true
    rested=$((rested + 1))
}

# read_states: `states` and `missing` of every run that is there
read_states() {
    local run word step total what listed
    declare -gA states=() missing=() steps=()
    if compgen -G "runs/*/" >/dev/null; then
        listed=$("$PYTHON" "$ROOT/diffusion_model/list_runs.py" . --states) || exit
        while IFS=$'\t' read -r run word step total what; do
            states[$run]=$word missing[$run]=,$what, steps[$run]=$step/$total
        done <<<"$listed"
    fi
}

# run_cells: every chosen cell in its turn, over the devices
run_cells() {
    local cell slot
    while read -r -u 4 cell; do
        read_cell "$cell"
        if [[ -n $dry ]]; then
            echo "$order $state ${steps[$name]:-0} $name"
            continue
        fi
        case $state in
            finished) echo "skipped $name: finished"; continue ;;
            running) if [[ -z $single ]]; then echo "skipped $name: running"; continue; fi ;;
            untrained) echo "untrained $name"; undone+=("$name (untrained: run \`bash scripts/run_all.sh\` first)"); continue ;;
            unencoded) echo "unencoded $name"; undone+=("$name (unencoded: run \`bash scripts/rep_all.sh\` first)"); continue ;;
        esac
        free_slot
        if [[ $stopping == 1 ]]; then
            break
        fi
        start "$slot"
    done 4<<<"$chosen"
    while [[ ${#process[@]} -gt 0 ]]; do
        nap
        collect
    done
}

# read_cell LINE: the variables of a cell, and its state
read_cell() {
    read -r order set dataset mode widen rate seed <<<"$1"
    name=${dataset}_${widen}_${AUGMENTATION}_${mode}_${MIXUP}_${rate}_${seed}
    judge
}

# grid OPTIONS: read the options, and run
grid() {
    local -A restrict=()
    local option value
    single="" dry="" devices="" extra=() process=() running=() began=() undone=() stopping=0 rested=0
    while [[ $# -gt 0 ]]; do
        option=${1%%=*} value=${1#*=}
        case $1 in
            --dry-run) dry=1 ;;
            --) extra+=("${@:2}"); break ;;
            --config.optimiser.learning_rate=* | --config.model.mode=* | --config.encoder.widen=* | --config.seed=* | \
                --config.data.augmentation=* | --config.training.mixup=*)
                echo "error: $1: this is an axis of the grid or fixed by it; choose cells with --modes, --widens, --rates, --seeds" >&2
                exit 2 ;;
            --config.*=*) extra+=("$1") ;;
            --datasets* | --modes* | --widens* | --rates* | --seeds* | --devices* | --index*)
                if [[ $1 != *=* ]]; then
                    value=${2:-}
                    shift
                fi
                if [[ -z $value ]]; then
                    echo "error: $option needs a value (see --help)" >&2
                    exit 2
                fi
                restrict[$option]=$value ;;
            *)
                echo "error: unknown argument $1; accepted: --datasets, --modes, --widens, --rates, --seeds, --devices," \
                    "--index, --dry-run, --config.section.field=value and -- OPTIONS (see --help)" >&2
                exit 2 ;;
        esac
        shift
    done
    all=$(cells) || exit 1
    all=$(awk '{ print NR - 1, $0 }' <<<"$all")
    chosen=$all
    for option in --datasets:3 --modes:4 --widens:5 --rates:6 --seeds:7 --index:1; do
        if [[ -n ${restrict[${option%:*}]:-} ]]; then
            choose "${option%:*}" "${restrict[${option%:*}]}" "${option#*:}"
        fi
    done
    single=${restrict[--index]:+ } devices=${restrict[--devices]:-}
    if [[ -z $chosen ]]; then
        echo "error: no cell of the grid has all of these together (see --help)" >&2
        exit 2
    fi
    read_states
    find_devices
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap forward TERM INT HUP USR1
    set -m # a process group a job: signals reach it whole, and only through `forward`
    run_cells
    if [[ $stopping == 1 ]]; then
        echo "interrupted: run the same command to go on from here" >&2
        exit 130
    fi
    if [[ ${#undone[@]} -gt 0 ]]; then
        printf 'error: %d jobs are not done; run the same command to go on:\n' "${#undone[@]}" >&2
        printf '    %s\n' "${undone[@]}" >&2
        exit 1
    fi
}
