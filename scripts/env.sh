# Sourced by the other scripts: sets ROOT (the project) and PYTHON (the interpreter that has its packages).
#
# $PYTHON, where it is set, is used as it is: it must have the packages of pyproject.toml. Otherwise .venv in the
# project's root, made when absent, brought up to date when requirements.txt or pyproject.toml have changed, and begun
# again when its installation was interrupted. Silent and instant when there is nothing to do.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# find_python: the first Python of at least 3.11 that can make a virtual environment
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python of at least 3.11 with venv is on the path: install one (Debian, Ubuntu:" \
        "apt install python3 python3-venv), or set PYTHON to one that has the packages of pyproject.toml" >&2
    return 1
}

# install: make .venv, or bring it up to date; the stamp is written last
install() {
    local venv=$ROOT/.venv stamp=$ROOT/.venv/stamp wanted base
    wanted=$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | sha256sum | cut -d ' ' -f 1)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    if [[ -f $stamp ]]; then
        rm "$stamp"
        echo "updating $venv: requirements.txt or pyproject.toml has changed" >&2
    else
        base=$(find_python) || return 1
        echo "installing into $venv with $("$base" --version): a few minutes, 5.5 GB" >&2
        rm -rf "$venv"
        "$base" -m venv "$venv" || return 1
    fi
    (cd "$ROOT" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt) || {
        echo "error: the installation stopped: run the same command to begin it again" >&2
        return 1
    }
    echo "$wanted" >"$stamp"
}

if [[ -n ${PYTHON:-} ]]; then
    if ! PYTHON=$(command -v "$PYTHON"); then
        echo "error: PYTHON is set but is no program: set it to a Python that has the packages of pyproject.toml, or unset it" >&2
        exit 1
    fi
    PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
    export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
else
    install || exit 1
    PYTHON=$ROOT/.venv/bin/python
fi
