#!/usr/bin/env bash
# Measure speed and memory of every strategy, against the naive way and against Hugging Face's LXMERT.
#
#     bash run/vqa_bench.bash --quick      small size, under two minutes on two cores
#     bash run/vqa_bench.bash              base size, all sides, three turns each: about forty minutes on two cores
#     bash run/vqa_bench.bash --only bf16  only some rows, with the rows they are compared with
#
# Prints a table and writes snap/bench.json; --readme README.md puts the table into the README.
set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/vqa_bench.py "$@"
