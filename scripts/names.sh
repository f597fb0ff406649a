# Sourced by run.sh and rep.sh: the parts of a run's name, spelled one way.

# canonical DATASET: its name on disk (CIFAR10 -> cifar10, FashionMNIST -> fashion_mnist)
canonical() {
    "$PYTHON" -c 'import sys; from diffusion_model import data, experiment
experiment.launch(lambda names: print(data.canonical(names[0])), sys.argv[1:])' "$1"
}

# number VALUE: in shortest form (2e-4 -> 0.0002)
number() {
    LC_ALL=C printf '%g' "$1" 2>/dev/null || {
        echo "error: learning rate '$1': expected a number such as 2e-4" >&2
        return 2
    }
}
