#!/usr/bin/env bash
# Fine-tune in several ways with several seeds and print the table of results.
# Or compare two runs, or two files of predictions.
#
#   bash run/compare.bash [--strategies a,b] [--row "name=flags"] \
#         [--datasets a,b] [--seeds 0,1,2] [--jobs n] [-- flags]
#   bash run/compare.bash --runs <version> <version>
#   bash run/compare.bash --predictions A.json B.json --annotations F.json
#
#   bash run/compare.bash
#         every strategy, and standard from scratch, three seeds
#   bash run/compare.bash --seeds 0 --readme README.md
#         one seed; the table is written into the README
#   bash run/compare.bash --jobs 1 --prefix v2 -- --dataset vqav2
#   bash run/compare.bash --strategies standard \
#         --row "a third=--strategy standard --lr 3e-4"
#   bash run/compare.bash --runs compare-standard-0 compare-Frozen-0
#
# Flags after -- are handed to the trainer; `bash run/compare.bash --help`
# explains the others and lists the strategies. One run per CPU core is started
# at a time: on a GPU, --jobs 1 is the safe choice. The 18 runs of the default
# take about fifteen minutes on two CPU cores. The result is a folder
# snap/vqa/<prefix>-<row>-<seed>/ each, and the table. After Ctrl-C the same
# command goes on where it stopped. Two runs or two files take seconds.
# run/README.md says what the intervals mean.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/compare.py "$@"
