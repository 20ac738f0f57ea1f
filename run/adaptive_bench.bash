#!/usr/bin/env bash
# Measure what get_adaptive_model adds to a plain BERT.
# Time in evaluation with all gates equal, and the size of files.
#
#   bash run/adaptive_bench.bash [flags]  (--help lists them)
#
#   bash run/adaptive_bench.bash
#         base size: about four minutes on two CPU cores
#   bash run/adaptive_bench.bash --quick
#         a small one: well under a minute
#
# Weights are random, so that none are needed. --json FILE writes the figures too.

set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

exec "$PYTHON" src/tasks/adaptive_bench.py "$@"
