#!/usr/bin/env bash
# Measures the conversion of region features and the loading from a store, side by side with the plain way.
#
#   bash run/data_bench.bash [flags]        (--help lists them)
#
#   bash run/data_bench.bash --quick        300 rows: under a minute
#   bash run/data_bench.bash                5,000 rows, needs 4 GB of disk for the time being: about two minutes
#
# Prints rows a second, the ratio, peak memory, and rates of random batches; with --json FILE writes them too,
# and with --readme README.md puts them into the README.
set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

exec "$PYTHON" src/tasks/data_bench.py "$@"
