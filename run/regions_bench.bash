#!/usr/bin/env bash
# Measure the detector that turns photos into regions.
# Seconds a photo, where they go, and peak memory.
#
#   bash run/regions_bench.bash [flags]  (--help lists them)
#
#   bash run/regions_bench.bash
#         one photo to warm up and three: about a minute on two CPU cores
#   bash run/regions_bench.bash --photos 1
#
# Weights are random, so that none are needed. --json FILE writes the figures
# too, and --readme FILE the table into a file that has markers for it.

set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

exec "$PYTHON" src/tasks/regions_bench.py "$@"
