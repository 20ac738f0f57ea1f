#!/usr/bin/env bash
# Pre-trains the small LXMERT of the embedded data sets on drawn scenes.
#
#   bash run/lxmert_pretrain.bash [flags]
#         (--help lists them)
#   bash run/lxmert_pretrain.bash --seed 1
#         the model of draw 1: for --dataset scenes-draw1, scenes-mixed-draw1,
#         ...
#
# About nine minutes on two CPU cores, with one thread for the sake of the
# checksum. Writes snap/pretrained/lxmert-scenes/ (0.8 MB) and prints the
# checksum of its weights and the accuracy on clean scenes that it has not seen,
# about 90 %. The folder comes with the repository; this is how it was made.
# With --seed N the folder is snap/pretrained/lxmert-scenes-draw<N>/.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/lxmert_pretrain.py "$@"
