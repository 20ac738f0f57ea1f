#!/usr/bin/env bash
# Write the best epoch of a run as one folder that needs nothing else.
# It has a model card.
#
#   bash run/export.bash <version> --to <folder>
#   bash run/export.bash --run <run folder> --to <folder>
#         a run that does not lie in snap/vqa
#
#   bash run/export.bash demo --to demo_export
#   bash run/export.bash demo --to demo_plain --plain
#         a run with constant gates, for transformers
#   bash run/export.bash demo --to demo_half --interpolate 0.5
#         half-way to the pre-trained weights
#   bash run/export.bash demo --to demo_onnx --onnx --torch-export
#         model.onnx and model.pt2 beside the weights
#
# Takes a few seconds, and --onnx up to minutes; it needs `pip install onnx
# onnxruntime onnxscript`. What was trained with standard or Frozen, plain
# transformers loads. All are evaluated with `bash run/vqa_test.bash 0 demo
# --load demo_export`, and trained on with `bash run/vqa_finetune.bash 0 more
# --load demo_export`. The folder must not exist, and is written whole or not at
# all. Paths are as seen from where you stand.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/export.py "$@"
