#!/usr/bin/env bash
# Write the report of a run, or of several side by side.
# Or draw pictures and tables of them.
#
#   bash run/report.bash <version> [<version> ...] [--to <file>]
#   bash run/report.bash <command> ...
#         (--help lists them, <command> --help explains one)
#
#   bash run/report.bash demo
#         scores, curves, gates, questions: one HTML file
#   bash run/report.bash demo demo_block
#         the same of two, side by side
#   bash run/report.bash policy demo
#         which gates ran tuned in the last epoch of a run
#   bash run/report.bash results snap/vqa/compare-*
#         the results of finished runs, one row per strategy
#   bash run/report.bash results snap/vqa/compare-* --readme README.md
#   bash run/report.bash page snap/vqa/compare-*
#         a page of results on any data sets, with pictures
#
# Takes a few seconds. Report and pictures go to visualizations/<version>/, the
# page to visualizations/results.md, unless --to, --output or --page says
# otherwise.

set -euo pipefail

# shellcheck source=env.bash
source "$(dirname "$(readlink -f "$0")")/env.bash"
exec "$PYTHON" src/tasks/vqa_report.py "$@"
