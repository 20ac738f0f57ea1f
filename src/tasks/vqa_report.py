"""The report of runs, and pictures and tables of them.

    bash run/report.bash <version>              all of a run, in one HTML file
    bash run/report.bash <version> <another>    several, side by side
    bash run/report.bash policy <version>       what the policy chose
    bash run/report.bash results snap/vqa/c-*   a row per strategy
    bash run/report.bash page snap/vqa/c-*      pictures, a table per data set

A run is given by its version name or by its folder; one with the name of a
command after the word `report`.
"""

# Not report.py: Python looks into a script's own folder first, where it would hide the package `report`.

import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import Parser, run_command
from report.policy_plot import draw_run
from report.results_page import write_page
from report.results_table import make_tables, show_results
from report.run import find_run
from tasks.finetune.strategies import STRATEGIES

PICTURES = Path("visualizations")
REPORT = "report"
COMMANDS = (REPORT, "policy", "results", "page")


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in (*COMMANDS, "-h", "--help"):
        words.insert(0, REPORT)
    args = build_parser().parse_args(words)
    if args.command == REPORT:
        from tasks.finetune.report import make_report  # reading data sets loads torch, which takes seconds

        name = "-".join(run.name for run in args.runs)
        print(f"wrote {make_report(args.runs, args.to or PICTURES / name / 'report.html')}")
    elif args.command == "policy":
        for path in draw_run(args.run, args.output or PICTURES / args.run.name):
            print(f"wrote {path}")
    elif args.command == "page":
        for path in write_page(args.page, make_tables(args.runs, list(STRATEGIES)), args.runs):
            print(f"wrote {path}")
    else:
        options = {name: getattr(args, name) for name in ("reference", "readme", "json", "markdown_only")}
        show_results(args.runs, list(STRATEGIES), **options)


def build_parser() -> Parser:
    """The command line; `command` is the sub-command's name."""
    parser = Parser(prog="report.bash", description=__doc__)
    commands = parser.add_subparsers(metavar="<command>", dest="command", required=True, title="commands")

    about = "Write all there is to see of a run, or of several side by side, into one HTML file."
    report = commands.add_parser(REPORT, help="an HTML file; the default", description=about)
    report.add_argument("runs", type=find_run, nargs="+", help="version names or folders")
    help = "default: visualizations/<version>/report.html, with several versions joined by hyphens"
    report.add_argument("--to", type=Path, metavar="FILE", help=help)

    about = "Draw which gates ran tuned in a run's last epoch: training, validation, by question type (PNG)."
    policy = commands.add_parser("policy", help="pictures of what the policy chose", description=about)
    policy.add_argument("run", type=find_run, help="the version name or folder of an adaptive run")
    policy.add_argument("--output", type=Path, metavar="DIR", help="default: visualizations/<version>")

    about = "Print the results of finished runs, averaged over seeds, and check the orderings one expects."
    results = commands.add_parser("results", help="a row per strategy of finished runs", description=about)
    flag = results.add_argument
    flag("runs", type=find_run, nargs="+", help="version names or folders, such as snap/vqa/compare-*")
    flag("--reference", metavar="ROW", help="the row to compare with (default: standard, if it is there)")
    flag("--readme", type=Path, metavar="FILE", help="write it between this file's results markers too")
    flag("--json", type=Path, metavar="FILE", help="write unrounded rows and orderings to this file too")
    flag("--markdown-only", action="store_true", help="print it in markdown and without the orderings")

    about = "Write a page with the results of finished runs on any data sets: two pictures, and their tables."
    page = commands.add_parser("page", help="a page of results, with pictures", description=about)
    page.add_argument("runs", type=find_run, nargs="+", help="version names or folders, of any data sets")
    help = "the page, in markdown; its pictures are written beside it (%(default)s)"
    default = Path("visualizations/results.md")
    page.add_argument("--page", type=Path, default=default, metavar="FILE", help=help)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted"))
