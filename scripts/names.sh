# Sourced by run.sh, rep.sh and grid.sh: the parts of a run's name, spelled one way, and what starts a command.

# canonical DATASET ...: names on disk, a line each (CIFAR10 -> cifar10, FashionMNIST -> fashion_mnist)
canonical() {
    "$PYTHON" -c 'import sys; from diffusion_model import data, experiment
experiment.launch(lambda names: print(*map(data.canonical, names), sep="\n"), sys.argv[1:])' "$@"
}

if [[ ! ${GPUS:-1} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS=$GPUS: expected a number of devices, 1 or more" >&2
    exit 2
fi

# number VALUE WHAT: in shortest form (2e-4 -> 0.0002, 1.0 -> 1)
number() {
    LC_ALL=C printf '%g' "$1" 2>/dev/null || {
        echo "error: $2 '$1': expected a number such as 2e-4" >&2
        return 2
    }
}

# truth VALUE WHAT: True or False, however it is written
truth() {
    case ${1,,} in
        true | 1) echo True ;;
        false | 0) echo False ;;
        *) echo "error: $2 '$1': expected True or False" >&2; return 2 ;;
    esac
}

# launcher: sets `command` to the Python that starts a command, or to torchrun where GPUS asks for several processes.
# torchrun kills 30 s after a SIGTERM, which can be too short for the last checkpoint of a large network.
launcher() {
    command=("$PYTHON")
    if [[ ${GPUS:-1} -gt 1 ]]; then
        export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
        command+=(-m torch.distributed.run --standalone --nproc_per_node="$GPUS")
    fi
}
