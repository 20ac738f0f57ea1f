#!/usr/bin/env bash
# Measure the conversion of region features and the loading from a store.
# Beside it stands the plain way.
#
#   bash run/data_bench.bash [flags]  (--help lists them)
#
#   bash run/data_bench.bash --quick
#         300 rows: under a minute
#   bash run/data_bench.bash
#         5,000 rows, needs 4 GB of disk meanwhile: about two minutes
#
# Prints rows per second, the ratio, peak memory, and rates of random batches.
# --json FILE writes them too, and --readme README.md puts a sentence into the
# README and the tables into run/BENCHMARKS.md.

set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

exec "$PYTHON" src/tasks/data_bench.py "$@"
