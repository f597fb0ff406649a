#!/usr/bin/env bash
# test.sh [PYTEST ARGUMENTS]: the environment, then the tests, one process a core.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
export OMP_NUM_THREADS=1 # a process of one thread each is quicker than one with a thread a core
exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
