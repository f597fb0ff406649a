#!/usr/bin/env bash
# test.sh [PYTEST ARGUMENTS]: the environment, then the tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
