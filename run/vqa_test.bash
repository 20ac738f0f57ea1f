#!/usr/bin/env bash
# Evaluate a fine-tuned model on a split, or put one question to it.
#
#   bash run/vqa_test.bash <gpu> <version> [--test <split>] [--load <folder>] \
#         [flags]
#   bash run/vqa_test.bash <gpu> <version> --question <text> --image-id <id> \
#         [--load <folder>] [flags]
#   bash run/vqa_test.bash <gpu> <version> --question <text> --image <file> \
#         [--weights <file>] [flags]
#
#   <gpu>       0, or several such as 0,1, or cpu
#   <version>   the name of the run
#   --test      the split; default: that on which the run validated
#   --load      the weights, a BEST folder, its run, or an export; default:
#               snap/vqa/<version>/BEST
#   --question  a question in quotes, about the image --image-id of a feature
#               store or the photo --image; may be given several times;
#               --questions <file> has one a line
#   --weights   the detector's, for a photo that is not in the feature store, if
#               a detector made that
#   [flags]     handed to src/tasks/vqa.py; paths in them are as seen from where
#               you stand
#
#   bash run/vqa_test.bash 0 spottune
#   bash run/vqa_test.bash 0 spottune --test nominival \
#         --load snap/vqa/spottune/BEST
#   bash run/vqa_test.bash 0 spottune --test minival \
#         --load snap/vqa/spottune/BEST --controls
#         under other gates
#   bash run/vqa_test.bash 0 spottune --evaluate-gates average
#         both copies, half and half
#   bash run/vqa_test.bash 0 spottune \
#         --question "how many red objects are there?" --image-id scene_000400
#   bash run/vqa_test.bash 0 spottune --question "is there a circle?" \
#         --image data/scenes/images/scene_000400.png
#
# On the embedded scenes it takes a few seconds. It prints the accuracy and
# writes snap/vqa/<version>/predictions/<split>.json, with --controls, which
# takes about twenty times as long, their table too and controls/<split>.json;
# for a question it prints the five likeliest answers and which layers ran
# tuned, and writes nothing. With --interpolate 0.5 the weights are the mean of
# these and the pre-trained ones, and the predictions those of
# <split>-interpolated-0.5.json.

set -euo pipefail

here="$(dirname "$(readlink -f "$0")")"
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$here/vqa_test.bash"; }

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    # shellcheck source=env.bash
    source "$here/env.bash"
    exec "$PYTHON" src/tasks/vqa.py --help
fi
if (($# < 2)); then
    echo "error: a GPU (or cpu) and the version name of a run are needed." >&2
    usage >&2
    exit 2
fi
gpu=$1 version=$2
shift 2
what=(--test)
for flag in "$@"; do
    case "$flag" in
        --question | --question=* | --questions | --questions=*) what=() ;;
        --image | --image=* | --image[-_]id | --image[-_]id=*) what=() ;;
    esac
done
# The trainer is the evaluator as well. Of a flag given twice the last one counts, so "$@" overrides the defaults.
# The odd expansion: bash 3.2 takes an empty array for an unset variable.
exec bash "$here/vqa_finetune.bash" "$gpu" "$version" ${what[@]+"${what[@]}"} --load "snap/vqa/$version/BEST" "$@"
