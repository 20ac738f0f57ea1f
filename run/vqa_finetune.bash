#!/usr/bin/env bash
# Fine-tune LXMERT on visual question answering.
#
#   bash run/vqa_finetune.bash <gpu> <version> [flags]
#
#   <gpu>      0, or several such as 0,1,2,3, or cpu
#   <version>  a name for the run: letters, digits, '.', '_' and '-'
#   [flags]    handed to src/tasks/vqa.py; paths in them are as seen from where
#              you stand
#
#   bash run/vqa_finetune.bash 0 spottune
#   bash run/vqa_finetune.bash 0 block --strategy SpotTune_Block
#   bash run/vqa_finetune.bash 0,1,2,3 full --dataset vqav2 --strategy standard
#
# Without VQA v2 below data/, it trains on the embedded scenes: about a minute
# or two on two CPU cores. The result is the folder snap/vqa/<version>/ with
# train.log, result.json and the weights BEST/. After Ctrl-C the same command
# goes on where it stopped.

set -euo pipefail

here="$(dirname "$(readlink -f "$0")")"
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$here/vqa_finetune.bash"; }

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    # shellcheck source=env.bash
    source "$here/env.bash"
    exec "$PYTHON" src/tasks/vqa.py --help
fi
if (($# < 2)); then
    echo "error: a GPU (or cpu) and a version name are needed." >&2
    usage >&2
    exit 2
fi
gpu=$1 version=$2
shift 2
if ! [[ $version =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]]; then
    echo "error: the version name '$version' may hold letters, digits, '.', '_' and '-' only," \
        "and starts with a letter, a digit or '_'." >&2
    exit 2
fi

# shellcheck source=env.bash
source "$here/env.bash"
choose_gpu "$gpu"
exec "${LAUNCH[@]}" src/tasks/vqa.py --version "$version" "$@"
