"""Fine-tune with several strategies and seeds, some runs side by side, and print the results table.

    python src/tasks/compare.py --seeds 0,1,2 -- --epochs 14

Every run is a process of its own (src/tasks/vqa.py) with one thread: on the embedded scenes a second thread
gains a tenth, a second run far more. A run whose result.json is there is not repeated. One that fails is
named with its last words, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from tqdm import tqdm

SOURCES = Path(__file__).parents[1]
TRAINER = SOURCES / "tasks" / "vqa.py"
TABLE = SOURCES / "report" / "results_table.py"
RUNS = Path("snap/vqa")

# In the order of the published table.
STRATEGIES = {
    "from_scratch": ("--strategy=standard", "--fromScratch"),
    "Frozen": ("--strategy=Frozen",),
    "standard": ("--strategy=standard",),
    "SpotTune_Block": ("--strategy=SpotTune_Block",),
    "SpotTune": ("--strategy=SpotTune",),
}
LAST_WORDS = 12  # lines shown of a run that failed
POLL_SECONDS = 0.2


class Started(NamedTuple):
    """A run under way and the file that takes what it prints."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]


class Outcome(NamedTuple):
    """What became of the runs."""

    failed: list[str]
    interrupted: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage text in front of it."""
        self.exit(2, f"error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if a run or the table failed, or 130 if interrupted."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    names = {
        f"{args.prefix}-{strategy}-{seed}": (strategy, seed)
        for seed in args.seeds
        for strategy in args.strategies
    }
    finished = [name for name in names if is_finished(name)]
    if finished:
        print(f"{len(finished)} of {len(names)} runs were finished earlier and are not repeated.", flush=True)
    commands = {
        name: trainer_command(name, strategy, seed, args.trainer_flags)
        for name, (strategy, seed) in names.items()
        if name not in finished
    }
    outcome = run_side_by_side(commands, args.jobs)
    if outcome.interrupted:
        print("Interrupted: run the same command again to go on.")
        return 130
    if outcome.failed:
        print(f"{len(outcome.failed)} runs failed: {', '.join(outcome.failed)}", file=sys.stderr)
    folders = [str(RUNS / name) for name in names if is_finished(name)]
    if not folders:
        print("error: no run has a result, so there is no table.", file=sys.stderr)
        return 1
    readme = ["--readme", args.readme] if args.readme else []
    table = subprocess.run([sys.executable, str(TABLE), *folders, *readme])
    return 1 if outcome.failed or table.returncode else 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags before `--`; those after it become `trainer_flags`. Exits with code 2 on a mistake."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = _Parser(
        prog="compare.bash",
        description="Fine-tune with every strategy and every seed, then print the results table.",
        epilog="Flags after -- are handed to the trainer: compare.bash --seeds 0 -- --epochs 3. "
        "Give runs with other trainer flags another --prefix.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strategies", type=strategy_list, default=",".join(STRATEGIES), help="which of the five"
    )
    parser.add_argument("--seeds", type=seed_list, default="0,1,2", help="which seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    parser.add_argument("--prefix", default="compare", help="runs go to snap/vqa/<prefix>-<strategy>-<seed>")
    parser.add_argument("--readme", metavar="FILE", help="write the table into this file as well")
    args = parser.parse_args(argv[:end])
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {args.jobs}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", args.prefix):
        parser.error(f"--prefix may hold letters, digits, '.', '_' and '-' only, not {args.prefix!r}")
    args.trainer_flags = list(argv[end + 1 :])
    return args


def strategy_list(text: str) -> list[str]:
    """ "from scratch,Frozen" -> ["from_scratch", "Frozen"], without repetitions."""
    names = list(dict.fromkeys(part.strip().replace(" ", "_") for part in text.split(",")))
    for name in names:
        if name not in STRATEGIES:
            raise argparse.ArgumentTypeError(f"unknown strategy {name!r}; there are: {', '.join(STRATEGIES)}")
    return names


def seed_list(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2], without repetitions."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds are whole numbers such as 0,1,2; not {text!r}") from None


def trainer_command(name: str, strategy: str, seed: int, flags: Sequence[str]) -> list[str]:
    return [
        *(sys.executable, str(TRAINER), "--version", name),
        *STRATEGIES[strategy],
        *("--seed", str(seed)),
        *flags,
    ]


def is_finished(name: str) -> bool:
    return (RUNS / name / "result.json").exists()


def run_side_by_side(commands: Mapping[str, Sequence[str]], jobs: int) -> Outcome:
    """Run all commands, at most `jobs` at a time.

    After Ctrl-C or SIGTERM nothing is started any more, each running process gets one SIGINT, on which the
    trainer saves itself, and is waited for. A second Ctrl-C terminates them.
    """
    waiting, running, failed = list(commands), {}, []
    forwarded = 0
    with collected_signals() as signals, tqdm(total=len(commands), unit="run", disable=not commands) as bar:
        while running or (waiting and not signals):
            while waiting and len(running) < jobs and not signals:
                name = waiting.pop(0)
                running[name] = start(commands[name])
            if len(signals) > forwarded:
                tqdm.write("Stopping: the runs save themselves. Ctrl-C again ends them at once.", sys.stderr)
                for run in running.values():
                    run.process.send_signal(signal.SIGTERM if forwarded else signal.SIGINT)
                forwarded = len(signals)
            bar.set_postfix_str(", ".join(running), refresh=sys.stderr.isatty())
            time.sleep(POLL_SECONDS)
            for name in [name for name, run in running.items() if run.process.poll() is not None]:
                run = running.pop(name)
                bar.update()
                if run.process.returncode != 0 and not signals:
                    failed.append(name)
                    headline = f"{name} failed with exit code {run.process.returncode}:"
                    tqdm.write(f"{headline}\n{last_words(run.output)}", sys.stderr)
                run.output.close()
    return Outcome(failed, interrupted=bool(signals))


def start(command: Sequence[str]) -> Started:
    """Start in a session of its own, where a Ctrl-C in the terminal arrives only as the signal forwarded."""
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    return Started(process, output)


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """A list that grows by each SIGINT, SIGTERM and SIGHUP instead of their ending the process.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    signals: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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
    sys.exit(main())
