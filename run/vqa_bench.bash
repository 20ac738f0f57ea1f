#!/usr/bin/env bash
# Measure speed and memory of every strategy.
# Against the naive way and against Hugging Face's LXMERT.
#
#   bash run/vqa_bench.bash [flags]  (--help lists them)
#
#   bash run/vqa_bench.bash --quick
#         small size, under two minutes on two cores
#   bash run/vqa_bench.bash
#         base size, everything three times: about an hour on two cores
#   bash run/vqa_bench.bash --only bf16
#         only some rows, with the rows they are compared with
#   bash run/vqa_bench.bash --from-json snap/bench.json --readme README.md
#
# Prints a table and writes snap/bench.json. --readme README.md puts eight rows
# and a picture into the README and all rows into run/BENCHMARKS.md; with
# --from-json nothing is measured, and what an earlier benchmark wrote is shown.

set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/vqa_bench.py "$@"
