"""From published files, or your own, to the data sets that the trainer reads.

    bash run/vqa_prepare.bash questions --from <folder>         VQA v2, from its published files
    bash run/vqa_prepare.bash questions --lxmert <folder>       VQA v2, from LXMERT's question files
    bash run/vqa_prepare.bash questions-cp --from <folder>      VQA-CP v2
    bash run/vqa_prepare.bash own --from <folder> --name <name> your own questions and answers
    bash run/vqa_prepare.bash changing-priors --from data/scenes --name scenes-cp
    bash run/vqa_prepare.bash check data/<name>                 the first ten faults of a data set

Files get their names when all of them are complete, so an interrupted command leaves what was there before
and can be started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from common.errors import UserError
from tasks.prepare import features as vqa_prepare_features
from tasks.prepare import questions as vqa_prepare_questions


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage text in front of it."""
        self.exit(2, f"error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 0, 1 if data was found wanting, 2 with a sentence on a mistake."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command can be started again", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line; `run` of what it parses is the function of the command."""
    parser = _Parser(
        prog="vqa_prepare.bash",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="<command>", required=True, title="commands")
    vqa_prepare_questions.add_commands(commands)
    vqa_prepare_features.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
