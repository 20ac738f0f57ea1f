#!/usr/bin/env bash
# Write the best epoch of a run as one folder that needs nothing else.
# It has a model card.
#
#   bash run/export.bash <version> --to <folder>
#   bash run/export.bash --run <run folder> --to <folder>
#         a run that does not lie in snap/vqa
#
#   bash run/export.bash demo --to demo_export
#   bash run/export.bash demo --to demo_half --interpolate 0.5
#         half-way to the pre-trained weights
#
# Takes a few seconds. What was trained with standard or Frozen, plain
# transformers loads; the others are evaluated with `bash run/vqa_test.bash 0
# demo --load demo_export`. The folder must not exist, and is written whole or
# not at all.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/export.py "$@"
