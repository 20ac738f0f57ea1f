#!/usr/bin/env bash
# Prepare data: from published files, or your own, to what the trainer reads.
#
#   bash run/vqa_prepare.bash <command> [flags]
#         (--help lists them, <command> --help explains one)
#
#   bash run/vqa_prepare.bash questions --from downloads
#         VQA v2's questions and answers
#   bash run/vqa_prepare.bash questions-cp --from downloads
#         VQA-CP v2's
#   bash run/vqa_prepare.bash model --from data/mine
#         a small model for your own data
#   bash run/vqa_prepare.bash regions photos --dataset mine
#         features of your photos
#   bash run/vqa_prepare.bash check data/vqav2
#         is everything usable?
#
# Questions take a minute or two, features as long as reading them once, photos
# some 12 seconds each on two CPU cores. The result is a folder below data/.
# After Ctrl-C the same command can be started again.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/vqa_prepare.py "$@"
