"""From published files, or your own, to the data sets that the trainer reads.

    bash run/vqa_prepare.bash questions --from <folder>          VQA v2
    bash run/vqa_prepare.bash questions --lxmert <folder>        from LXMERT
    bash run/vqa_prepare.bash questions-cp --from <folder>       VQA-CP v2
    bash run/vqa_prepare.bash own --from <folder> --name <name>  your own
    bash run/vqa_prepare.bash changing-priors --from data/scenes --name cp
    bash run/vqa_prepare.bash model --from data/<name>           to train on it
    bash run/vqa_prepare.bash regions photos --dataset <name>    features
    bash run/vqa_prepare.bash check data/<name>                  all there?

Files get their names when all of them are complete, so an interrupted command
leaves what was there before, and can be started again.
"""

import sys
from collections.abc import Sequence

from common.cli import Parser, run_command
from tasks.prepare import check, features, model, questions, regions
from tasks.prepare.command import DATA

COMMANDS = {
    **questions.COMMANDS,
    "features": features.COMMAND,
    "model": model.COMMAND,
    "regions": regions.COMMAND,
    "check": check.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit code 0, 1 if data was found wanting, 2 with a sentence on a mistake."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: args.run(args), "interrupted; the same command can be started again")


def build_parser() -> Parser:
    """The command line; `run` of what it parses is the function of the command."""
    parser = Parser(prog="vqa_prepare.bash", description=__doc__)
    parsers = parser.add_subparsers(metavar="<command>", required=True, title="commands")
    for name, command in COMMANDS.items():
        texts = {"help": command.help, "description": command.description, "aliases": command.aliases}
        subparser = parsers.add_parser(name, **texts)
        for flag, options in (command.flags | DATA).items():
            subparser.add_argument(flag, **options)
        subparser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
