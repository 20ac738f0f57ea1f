#!/usr/bin/env bash
# Measure how start-up, memory and steps grow with the size of everything.
# That is questions, images, batch, gates, layers and processes.
#
#   bash run/growth_bench.bash [flags]  (--help lists them)
#
#   bash run/growth_bench.bash --quick
#         small sizes, under a minute
#   bash run/growth_bench.bash
#         up to 650,000 questions and 120,000 images: about four minutes
#   bash run/growth_bench.bash --page run/BENCHMARKS.md
#
# Prints tables; --page replaces those of the file, and --json FILE writes the
# figures. Many GPUs and network disks are computed, with the formula, and
# marked so.

set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

exec "$PYTHON" src/tasks/growth_bench.py "$@"
