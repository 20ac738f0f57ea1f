"""Fine-tune in several ways, with several seeds; or compare two runs, or two files.

    bash run/compare.bash --seeds 0,1,2 -- --epochs 14
    bash run/compare.bash --strategies standard --row "a third=--strategy standard --lr 3e-4"
    bash run/compare.bash --runs compare-standard-0 compare-Frozen-0
    bash run/compare.bash --predictions A.json B.json --annotations F.json

Every run is a process of its own (src/tasks/vqa.py) with one thread: on the embedded scenes a second thread
gains a tenth, a second run far more. A run whose result.json is there is not repeated. One that fails is
named with its last words, and the others go on.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from common.cli import ASKING, DONE, FOUND_WANTING, HelpInLines, Parser, run_command
from common.errors import DataError, Interrupted, UserError
from common.files import check_name
from common.markdown import COLUMNS, check_block
from common.words import counted
from report.pair import Pair, describe, differing_arguments, pair_of_runs
from report.results_table import REFERENCE, make_tables, row_name, show_results
from report.run import RUNS, Run, find_run
from tasks.finetune.strategies import STRATEGIES
from vqadata.official import read_annotations
from vqadata.scoring import make_ground_truth, official_accuracy, read_predictions, restrict

TRAINER = Path(__file__).with_name("vqa.py")
LAST_WORDS = 12  # lines shown of a run that failed
POLL_SECONDS = 0.2
PROGRESS = "{n_fmt}/{total_fmt} runs |{bar:12}| {elapsed}{postfix}"
LOW_RANK = [
    strategy.name for strategy in STRATEGIES.values() if not strategy.keeps
]  # they can have such copies


class Candidate(NamedTuple):
    """A row of the table to be: its name, and the flags that the trainer gets for it."""

    name: str
    flags: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked; FOUND_WANTING if a run failed."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    if args.runs:
        print(describe(pair_of_runs(args.runs, args.at, args.split), differing_arguments(args.runs)))
        return DONE
    if args.predictions:
        print(describe(pair_of_predictions(args.predictions, args.annotations)))
        return DONE
    return compare_rows(args)


def compare_rows(args: argparse.Namespace) -> int:
    """Train what is not there yet, then show the tables."""
    if args.readme:
        check_block(args.readme, "results")
    commands: dict[str, list[str]] = {}
    rows: dict[str, list[Run]] = {candidate.name: [] for candidate in args.candidates}
    for seed in args.seeds:
        for dataset in args.datasets:
            for candidate in args.candidates:
                name = run_name(args.prefix, dataset, candidate.name, seed)
                commands[name] = trainer_command(name, candidate, dataset, seed, args.trainer_flags)
                rows[candidate.name].append(Run(RUNS / name))
    runs = [Run(RUNS / name) for name in commands]
    say_what_is_there(runs, commands)
    unfinished = {run.name: commands[run.name] for run in runs if not run.finished}
    failed, interrupted = run_side_by_side(unfinished, args.jobs, f"{args.prefix}-")
    if interrupted:
        message = "Interrupted: run the same command again to go on."
        raise Interrupted(message, 128 + interrupted)
    if failed:
        text = f"{counted(len(failed), 'run')} failed: {', '.join(failed)}"
        print(textwrap.fill(text, COLUMNS, break_on_hyphens=False), file=sys.stderr)
    if usable := [run for run in runs if run.finished]:
        reference = next((row_name(run) for run in rows.get(args.reference, ()) if run.finished), None)
        order = [*STRATEGIES, *rows]
        show_results(usable, order, reference=reference, readme=args.readme)
        if args.page:
            from report.results_page import write_page  # the drawing library takes a while

            for path in write_page(args.page, make_tables(usable, order, reference), usable):
                print(f"wrote {path}")
    return FOUND_WANTING if failed else DONE


def say_what_is_there(runs: Sequence[Run], commands: Mapping[str, Sequence[str]]) -> None:
    """How many runs are not repeated, and which of them were made with other flags than they would be now."""
    finished = [run for run in runs if run.finished]
    if finished:
        print(f"{len(finished)} of {len(runs)} runs were finished earlier and are not repeated.", flush=True)
    others = []
    for run in finished:
        if (run.folder / "env.json").is_file():
            flags = run.environment.get("command", [])[1:]
            others += [run.name] if flags and flags != commands[run.name][2:] else []
    if others:
        text = f"Made with other flags than now: {', '.join(others)}. Another --prefix makes new ones."
        print(textwrap.fill(text, COLUMNS, break_on_hyphens=False), flush=True)


def pair_of_predictions(files: Sequence[Path], annotations: Path) -> Pair:
    """Two prediction files in the challenge's format, scored with the official accuracy.

    DataError if they answer different questions, if one has no annotation, or if an annotation does not say
    which image its question is about.
    """
    one, other = map(read_predictions, files)
    if lonely := sorted(one.keys() ^ other.keys()):
        raise DataError(
            f"{counted(len(lonely), 'question', 'is')} answered in only one of {files[0]} and "
            f"{files[1]}, the first is {lonely[0]}: both must answer the same questions, all or part of the "
            "annotated ones."
        )
    annotated = {annotation.question_id: annotation for annotation in read_annotations(annotations)}
    truth = restrict(make_ground_truth(annotated[number] for number in one if number in annotated), one)
    images = [str(annotated[number].image_id) for number in truth]
    if "" in images:
        raise DataError(
            f"{annotations} does not say which image question {list(truth)[images.index('')]} is about "
            "(image_id), and intervals need that."
        )
    answers = [[answered[number] for number in truth] for answered in (one, other)]
    scores = [list(map(official_accuracy, truth.values(), given)) for given in answers]
    types = {
        "answer type": np.array([human.answer_type for human in truth.values()]),
        "question type": np.array([human.question_type for human in truth.values()]),
    }
    names = [str(file) for file in files]
    return Pair(names, np.array(images), np.array(scores), np.array(answers), types)


def strategies() -> dict[str, tuple[str, list[str]]]:
    """What can be compared by name, each with its sentence and the trainer's flags; `low_rank` gives more."""
    scratch = "standard, without pre-trained weights", ["--strategy=standard", "--fromScratch"]
    known = {s.name: (s.about, [f"--strategy={s.name}"]) for s in STRATEGIES.values()}
    return {"from scratch": scratch} | known


def trainer_flags(name: str) -> list[str] | None:
    """The trainer's flags for a strategy, or for one with low-rank copies, such as SpotTune-LoRA8."""
    known = strategies()
    strategy, low_rank, rank = name.partition("-LoRA")
    if low_rank and rank.isdecimal() and int(rank) and strategy in LOW_RANK:
        return [*known[strategy][1], "--tuned=lora", f"--rank={int(rank)}"]
    return known[name][1] if name in known else None


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags before `--`; those after it become `trainer_flags`. Exits with code 2 on a mistake."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = build_parser()
    args = parser.parse_args(argv[:end])
    args.trainer_flags = list(argv[end + 1 :])
    args.candidates = [*(args.strategies or []), *args.rows] or strategy_list(",".join(strategies()))
    names = [candidate.name for candidate in args.candidates]
    folders = [run_name(args.prefix, "", name, 0) for name in names]
    if twice := [name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1]:
        parser.error(f"two rows would have the same run folders: {', '.join(twice)}; name them otherwise")
    if args.reference not in (None, *names):
        parser.error(f"--reference {args.reference} is none of the rows, which are {', '.join(names)}")
    args.reference = args.reference or REFERENCE
    for holds, sentence in (
        (args.jobs >= 1, f"--jobs must be at least 1, not {args.jobs}"),
        (not (args.runs and args.predictions), "--runs and --predictions exclude each other"),
        (args.predictions or not args.annotations, "--annotations needs --predictions, two files to score"),
        (args.annotations or not args.predictions, "--predictions needs --annotations, the human answers"),
    ):
        if not holds:
            parser.error(sentence)
    for flag, name in (("--prefix", args.prefix), *(("--datasets", name) for name in args.datasets if name)):
        try:
            check_name(flag, name)
        except UserError as error:
            parser.error(str(error))
    return args


def build_parser() -> Parser:
    about_each = [
        textwrap.fill(about, COLUMNS, initial_indent=f"  {name:15} ", subsequent_indent=" " * 18)
        for name, (about, _) in strategies().items()
    ]
    low_rank = [f"{name}-LoRA8" for name in LOW_RANK]
    parser = Parser(
        prog="compare.bash",
        description="Fine-tune in several ways with every seed and print the table of results.\n"
        "Or compare two finished runs, or two files of predictions.",
        epilog="\n".join(["strategies:", *about_each])
        + "\n"
        + textwrap.fill(f"with low-rank copies, of this or another rank: {', '.join(low_rank)}", COLUMNS)
        + "\n\nFlags after -- are handed to the trainer: compare.bash --seeds 0 -- --epochs 3.\n"
        "Give runs with other trainer flags another --prefix.\n"
        "run/README.md says what the intervals mean.",
        formatter_class=HelpInLines,
    )
    flag = parser.add_argument
    flag("--strategies", type=strategy_list, metavar="A,B", help="(default: all below, or none with --row)")
    help = (
        'a row of any trainer flags: --row "a third=--strategy standard --lr 3e-4"; may be repeated; {seed} '
        "and {dataset} in it are filled in, so that it can name the runs of another row, which it waits for"
    )
    flag("--row", type=named_row, action="append", default=[], dest="rows", metavar="NAME=FLAGS", help=help)
    help = "data sets, a table for each (default: the one that the trainer takes)"
    flag("--datasets", type=name_list, default=[""], metavar="A,B", help=help)
    flag("--seeds", type=seed_list, default="0,1,2", metavar="0,1", help="(default: %(default)s)")
    help = "the row that others are compared with (default: standard, if it is one)"
    flag("--reference", metavar="ROW", help=help)
    jobs = os.cpu_count()
    flag("--jobs", type=int, default=jobs, metavar="N", help="runs at a time (default: %(default)s)")
    help = "runs are named <prefix>-[<data set>-]<row>-<seed> (default: compare)"
    flag("--prefix", default="compare", help=help)
    flag("--readme", type=Path, metavar="FILE", help="write the table between its results markers too")
    help = "write a page with the tables and two pictures to this file, such as visualizations/results.md"
    flag("--page", type=Path, metavar="FILE", help=help)
    group = parser.add_argument_group("two runs, or two files")
    help = "train nothing: compare two finished runs, by version name or folder"
    group.add_argument("--runs", type=find_run, nargs=2, metavar=("A", "B"), help=help)
    help = "compare the runs at their last or at their best epoch (default: last)"
    group.add_argument("--at", choices=("last", "best"), default="last", help=help)
    help = "compare the runs on another split, which vqa_test.bash --test SPLIT has scored for both"
    group.add_argument("--split", metavar="SPLIT", help=help)
    help = "train nothing: compare two files in the format of the VQA challenge, with the official accuracy"
    group.add_argument("--predictions", type=Path, nargs=2, metavar=("A", "B"), help=help)
    help = "for --predictions: an official annotation file, or data/<dataset>/annotations/<split>.json"
    group.add_argument("--annotations", type=Path, metavar="F", help=help)
    return parser


def strategy_list(text: str) -> list[Candidate]:
    """ "from_scratch,SpotTune-LoRA8" -> candidates of that name, without repetitions."""
    known = {name.replace(" ", "_"): name for name in strategies()}
    names = [part.strip().replace(" ", "_") for part in text.split(",")]
    names = list(dict.fromkeys(known.get(name, name) for name in names))
    for name in names:
        if trainer_flags(name) is None:
            raise argparse.ArgumentTypeError(f"unknown strategy {name!r}; there are: {', '.join(known)}")
    return [Candidate(name, trainer_flags(name)) for name in names]


def named_row(text: str) -> Candidate:
    """ "a third=--strategy standard --lr 3e-4" -> the candidate, whose runs have that label.

    Flags may name a run of another row, by {seed} and {dataset}: "refit=--refit compare-found-{seed}".
    """
    name, _, flags = (part.strip() for part in text.partition("="))
    try:
        words = shlex.split(flags)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(f"{flags!r} cannot be read as flags ({fault})") from None
    if not re.search(r"\w", name) or "|" in name or not flags.startswith("-"):
        raise argparse.ArgumentTypeError(
            f'a row is a name, without |, and flags: "a third=--strategy standard --lr 3e-4"; not {text!r}'
        )
    return Candidate(name, [*words, f"--label={name}"])


def name_list(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"], without repetitions."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def seed_list(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2], without repetitions."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds are whole numbers such as 0,1,2; not {text!r}") from None


def run_name(prefix: str, dataset: str, candidate: str, seed: int) -> str:
    """The version name of a run; `dataset` is '' for the one that the trainer takes."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", candidate)
    return "-".join([prefix, *([dataset] if dataset else []), plain, str(seed)])


def trainer_command(
    name: str, candidate: Candidate, dataset: str, seed: int, flags: Sequence[str]
) -> list[str]:
    """The command of a run; `flags` come last and so have the last word.

    What stands for a seed or a data set in a row's flags is filled in, see `named_row`.
    """
    values = {"{seed}": str(seed), "{dataset}": dataset}
    own = [re.sub(r"\{(seed|dataset)\}", lambda found: values[found[0]], word) for word in candidate.flags]
    command = [sys.executable, str(TRAINER), "--version", name, *own]
    return [*command, *([f"--dataset={dataset}"] if dataset else []), "--seed", str(seed), *flags]


def run_side_by_side(commands: Mapping[str, Sequence[str]], jobs: int, prefix: str) -> tuple[list[str], int]:
    """Run all commands, at most `jobs` at a time; return which failed, and the signal that came or 0.

    One that names another of these runs waits until that has ended. prefix: what names begin with, and nobody
    needs to see. After Ctrl-C or another signal that asks to stop nothing is started any more, each running
    process gets one SIGINT, on which the trainer saves itself, and is waited for. A second Ctrl-C terminates
    them. In the background of a script, where runs inherit that SIGINT is ignored, they get a SIGTERM.
    """
    ask = signal.SIGTERM if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else signal.SIGINT
    waiting, running, failed = list(commands), {}, []
    forwarded, times = 0, Times(jobs)
    bar = tqdm(total=len(commands), ncols=COLUMNS, bar_format=PROGRESS, disable=not commands)
    with collected_signals() as signals, bar:
        while running or (waiting and not signals):
            while len(running) < jobs and not signals and (name := ready(commands, waiting, running)):
                waiting.remove(name)
                running[name] = start(commands[name])
                times.begin(name)
            if len(signals) > forwarded:
                tqdm.write("Stopping: the runs save themselves. Ctrl-C again ends them at once.", sys.stderr)
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM if forwarded else ask)
                forwarded = len(signals)
            shown = ", ".join(name.removeprefix(prefix) for name in running)
            bar.set_postfix_str(f"{times.left(waiting)}: {shown}", refresh=sys.stderr.isatty())
            time.sleep(POLL_SECONDS)
            for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                process, output = running.pop(name)
                times.end(name)
                bar.update()
                if process.returncode != 0 and not signals:
                    failed.append(name)
                    headline = f"{name} failed with exit code {process.returncode}:"
                    tqdm.write(f"{headline}\n{last_words(output)}", sys.stderr)
                output.close()
    return failed, signals[0] if signals else 0


def ready(
    commands: Mapping[str, Sequence[str]], waiting: Sequence[str], running: Collection[str]
) -> str | None:
    """The first of the waiting runs whose command names no other run that is to end before it.

    If they all wait for each other it is the first one; None if there is no such run.
    """
    open_ones = {*waiting, *running}

    def is_free(name: str) -> bool:
        named = {part for word in commands[name] for part in re.split("[=/]", word)}
        return not (open_ones - {name}) & named

    free = filter(is_free, waiting)
    return next(free, waiting[0] if waiting and not running else None)


class Times:
    """How long runs took, and how long those to come will take.

    That is as long as those of their row with other seeds, and as long as the mean of all rows where none of
    their row has ended yet.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._began: dict[str, float] = {}
        self._took: dict[str, list[float]] = {}  # by row

    def begin(self, name: str) -> None:
        """A run of this name, which ends with its seed, begins now."""
        self._began[name] = time.monotonic()

    def end(self, name: str) -> None:
        """It ends now."""
        row = name.rpartition("-")[0]
        self._took.setdefault(row, []).append(time.monotonic() - self._began.pop(name))

    def left(self, waiting: Sequence[str]) -> str:
        """The time until all have ended, in words; `waiting`: those that have not begun."""
        if not self._took:
            return "time left not known yet"
        means = {row: sum(took) / len(took) for row, took in self._took.items()}
        usual = sum(means.values()) / len(means)
        expected = [means.get(name.rpartition("-")[0], usual) for name in (*waiting, *self._began)]
        done = sum(
            min(time.monotonic() - began, means.get(name.rpartition("-")[0], usual))
            for name, began in self._began.items()
        )
        seconds = (sum(expected) - done) / min(self._jobs, max(1, len(expected)))
        return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


def start(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a process, and return the file too that takes what it prints.

    It has a session of its own, where a Ctrl-C in the terminal arrives only as the signal forwarded.
    """
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    return process, output


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """A list that grows by each signal that asks to stop instead of its ending the process.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    signals: list[int] = []
    handlers = {number: signal.getsignal(number) for number in ASKING}
    heeded = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, lambda caught, frame: signals.append(caught))
    try:
        yield signals
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)


def last_words(output: IO[bytes]) -> str:
    """The last lines of a run's output, indented, each as a terminal would have shown it in the end."""
    output.seek(0)
    lines = output.read().decode(errors="replace").split("\n")
    # A progress bar returns with \r and overwrites itself: only its last state counts.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    return "\n".join(f"    {line}" for line in [line for line in shown if line.strip()][-LAST_WORDS:])


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; the same command goes on"))
