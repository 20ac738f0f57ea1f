#!/usr/bin/env bash
# Compare the strategies: fine-tune with each of them and several seeds, then print the results table.
#
#   bash run/compare.bash [--strategies a,b] [--seeds 0,1,2] [--jobs n] [--prefix name] [--readme file] [-- flags]
#
#   bash run/compare.bash                                    every strategy, and standard from scratch, three seeds
#   bash run/compare.bash --seeds 0 --readme README.md       one seed; the table is written into the README
#   bash run/compare.bash --jobs 1 --prefix v2 -- --dataset vqav2
#
# Flags after -- are handed to the trainer; `bash run/compare.bash --help` explains the others and lists the
# strategies. One run per CPU core is started at a time: on a GPU, --jobs 1 is the safe choice.
# The 18 runs of the default take about fifteen minutes on two CPU cores. The result is a folder
# snap/vqa/<prefix>-<strategy>-<seed>/ each, and the table. After Ctrl-C the same command goes on where it stopped.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/compare.py "$@"
