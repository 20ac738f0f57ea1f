#!/usr/bin/env bash
# Kill, cut off, fill, damage, double, change and poison small runs.
# See whether they bear it.
#
#   bash run/faults.bash [flags]  (--help lists them)
#
#   bash run/faults.bash --quick
#         a part of every group: a minute and a half on two cores
#   bash run/faults.bash
#         all of about 700 cases: a quarter of an hour on two cores
#   bash run/faults.bash --only damage --case LAST
#         the cases of a group with this in their names
#
# Prints a table of the groups and the cases that did not end as intended; the
# exit code is 1 if there are any.

set -euo pipefail
# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"

export PYTHONPATH="$PYTHONPATH:$root"
# Small runs, several at once: a thread each, no GPU, and never a network.
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" ACCELERATE_USE_CPU=true HF_HUB_OFFLINE=1
exec "$PYTHON" tests/faults/run.py "$@"
