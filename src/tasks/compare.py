"""Fine-tune with several strategies and seeds, some runs side by side, and print the results table.

    bash run/compare.bash --seeds 0,1,2 -- --epochs 14

Every run is a process of its own (src/tasks/vqa.py) with one thread: on the embedded scenes a second thread
gains a tenth, a second run far more. A run whose result.json is there is not repeated. One that fails is
named with its last words, and the others go on.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from common.cli import ASKING, DONE, FOUND_WANTING, Parser, run_command
from common.errors import Interrupted
from common.files import check_name
from common.markdown import check_block
from report.results_table import show_results
from report.run import RUNS, Run
from tasks.finetune.strategies import STRATEGIES

TRAINER = Path(__file__).with_name("vqa.py")
COLUMNS = 79
LAST_WORDS = 12  # lines shown of a run that failed
POLL_SECONDS = 0.2
LOW_RANK = [
    strategy.name for strategy in STRATEGIES.values() if not strategy.keeps
]  # they can have such copies


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not there yet, then show the table; FOUND_WANTING if a run failed."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    if args.readme:
        check_block(args.readme, "results")
    commands = {
        run_name(args.prefix, name, seed): trainer_command(args, name, seed)
        for seed in args.seeds
        for name in args.strategies
    }
    runs = [Run(RUNS / name) for name in commands]
    if finished := [run.name for run in runs if run.finished]:
        print(f"{len(finished)} of {len(runs)} runs were finished earlier and are not repeated.", flush=True)
    unfinished = {name: command for name, command in commands.items() if name not in finished}
    failed, interrupted = run_side_by_side(unfinished, args.jobs)
    if interrupted:
        message = "Interrupted: run the same command again to go on."
        raise Interrupted(message, 128 + interrupted)
    if failed:
        text = f"{len(failed)} runs failed: {', '.join(failed)}"
        print(textwrap.fill(text, COLUMNS, break_on_hyphens=False), file=sys.stderr)
    if usable := [run for run in runs if run.finished]:
        show_results(usable, list(STRATEGIES), readme=args.readme)
    return FOUND_WANTING if failed else DONE


def candidates() -> dict[str, tuple[str, list[str]]]:
    """What can be compared, each with its sentence and the trainer's flags; `low_rank` gives more."""
    scratch = "standard, without pre-trained weights", ["--strategy=standard", "--fromScratch"]
    strategies = {s.name: (s.about, [f"--strategy={s.name}"]) for s in STRATEGIES.values()}
    return {"from scratch": scratch} | strategies


def trainer_flags(name: str) -> list[str] | None:
    """The trainer's flags for a candidate, or for one with low-rank copies, such as SpotTune-LoRA8."""
    known = candidates()
    strategy, low_rank, rank = name.partition("-LoRA")
    if low_rank and rank.isdecimal() and int(rank) and strategy in LOW_RANK:
        return [*known[strategy][1], "--tuned=lora", f"--rank={int(rank)}"]
    return known[name][1] if name in known else None


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags before `--`; those after it become `trainer_flags`. Exits with code 2 on a mistake."""
    end = argv.index("--") if "--" in argv else len(argv)
    about_each = [
        textwrap.fill(about, COLUMNS, initial_indent=f"  {name:15} ", subsequent_indent=" " * 18)
        for name, (about, _) in candidates().items()
    ]
    low_rank = [f"{name}-LoRA8" for name in LOW_RANK]
    parser = Parser(
        prog="compare.bash",
        description="Fine-tune with every strategy and every seed, then print the results table.",
        epilog="\n".join(["strategies:", *about_each])
        + "\n"
        + textwrap.fill(f"with low-rank copies, of this or another rank: {', '.join(low_rank)}", COLUMNS)
        + "\n\nFlags after -- are handed to the trainer: compare.bash --seeds 0 -- --epochs 3.\n"
        "Give runs with other trainer flags another --prefix.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag, all_names = parser.add_argument, list(candidates())
    flag("--strategies", type=strategy_list, default=all_names, metavar="A,B", help="(default: all below)")
    flag("--seeds", type=seed_list, default="0,1,2", metavar="0,1", help="(default: %(default)s)")
    flag(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="runs at a time (default: %(default)s)"
    )
    flag("--prefix", default="compare", help="runs are named <prefix>-<strategy>-<seed> (default: compare)")
    flag("--readme", type=Path, metavar="FILE", help="write the table between its results markers too")
    args = parser.parse_args(argv[:end])
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {args.jobs}")
    check_name("--prefix", args.prefix)
    args.trainer_flags = list(argv[end + 1 :])
    return args


def strategy_list(text: str) -> list[str]:
    """ "from_scratch,SpotTune-LoRA8" -> ["from scratch", "SpotTune-LoRA8"], without repetitions."""
    known = {name.replace(" ", "_"): name for name in candidates()}
    names = [part.strip().replace(" ", "_") for part in text.split(",")]
    names = list(dict.fromkeys(known.get(name, name) for name in names))
    for name in names:
        if trainer_flags(name) is None:
            raise argparse.ArgumentTypeError(f"unknown strategy {name!r}; there are: {', '.join(known)}")
    return names


def seed_list(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2], without repetitions."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds are whole numbers such as 0,1,2; not {text!r}") from None


def run_name(prefix: str, candidate: str, seed: int) -> str:
    return f"{prefix}-{candidate.replace(' ', '_')}-{seed}"


def trainer_command(args: argparse.Namespace, candidate: str, seed: int) -> list[str]:
    command = [sys.executable, str(TRAINER), "--version", run_name(args.prefix, candidate, seed)]
    return [*command, *trainer_flags(candidate), "--seed", str(seed), *args.trainer_flags]


def run_side_by_side(commands: Mapping[str, Sequence[str]], jobs: int) -> tuple[list[str], int]:
    """Run all commands, at most `jobs` at a time; return which failed, and the signal that came or 0.

    After Ctrl-C or another that asks to stop nothing is started any more, each running process gets one
    SIGINT, on which the trainer saves itself, and is waited for. A second Ctrl-C terminates them.
    """
    waiting, running, failed = list(commands), {}, []
    forwarded = 0
    bar = tqdm(total=len(commands), unit="run", ncols=COLUMNS, disable=not commands)
    with collected_signals() as signals, bar:
        while running or (waiting and not signals):
            while waiting and len(running) < jobs and not signals:
                name = waiting.pop(0)
                running[name] = start(commands[name])
            if len(signals) > forwarded:
                tqdm.write("Stopping: the runs save themselves. Ctrl-C again ends them at once.", sys.stderr)
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM if forwarded else signal.SIGINT)
                forwarded = len(signals)
            shown = ["-".join(name.rsplit("-", 2)[1:]) for name in running]  # without the prefix
            bar.set_postfix_str(", ".join(shown), refresh=sys.stderr.isatty())
            time.sleep(POLL_SECONDS)
            for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                process, output = running.pop(name)
                bar.update()
                if process.returncode != 0 and not signals:
                    failed.append(name)
                    headline = f"{name} failed with exit code {process.returncode}:"
                    tqdm.write(f"{headline}\n{last_words(output)}", sys.stderr)
                output.close()
    return failed, signals[0] if signals else 0


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
