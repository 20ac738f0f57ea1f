"""Kill, cut off, fill, damage, double, change and poison small runs.

    bash run/faults.bash                      all cases
    bash run/faults.bash --quick              a part of every group
    bash run/faults.bash --only kill power    these groups
    bash run/faults.bash --only damage --case LAST
                                              cases with this in their names

Prints a table: the groups, how many cases each has and how many ended as
intended, then those that did not. The exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.faults import (
    changed,
    channels,
    cost,
    damage,
    doubled,
    full,
    kill,
    names,
    nonfinite,
    poison,
    power,
    signals,
)
from tests.faults.cases import Case, Group, Noted, Skip
from tests.faults.mounts import unmount_below
from tests.faults.place import COMMAND, EVALUATION, Place
from tests.faults.process import Start, warm

from common.cli import STARTED_IN, Parser, run_command

GROUPS: tuple[Group, ...] = (
    kill.GROUP,
    power.GROUP,
    nonfinite.GROUP,
    channels.GROUP,
    doubled.GROUP,
    changed.GROUP,
    signals.GROUP,
    damage.GROUP,
    poison.GROUP,
    names.GROUP,
    full.GROUP,
    cost.GROUP,
)
WIDTH, SHOWN = 80, 300  # characters: of a line, and of what is said of a case; --json has all of it
SKIPPED, NOTED = "skipped: ", "noted: "


class Verdict(NamedTuple):
    """How a case ended: as intended (None) or not, in a sentence. note: what a good case has to say."""

    group: Group
    case: Case
    wrong: str | None
    note: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    os.environ.pop(STARTED_IN, None)  # of this command's user: each run stands in its own folder
    chosen = [group for group in GROUPS if not args.only or group.name in args.only]
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    begin = time.monotonic()
    try:
        waiting = prepare(root, chosen, args)
        verdicts: list[Verdict] = []
        for alone in (False, True):
            part = [(group, case) for group, case in waiting if group.alone == alone]
            verdicts += run_all(part, root, 1 if alone else args.jobs)
    finally:
        unmount_below(root)
        if args.keep:
            print(f"the runs are in {root}", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)
    order = {id(case): number for number, (_, case) in enumerate(waiting)}
    print(table(chosen, sorted(verdicts, key=lambda verdict: order[id(verdict.case)])))
    print(f"{time.monotonic() - begin:.0f} s")
    if args.json:
        rows = [[v.group.name, v.case.name, v.wrong, v.note] for v in verdicts]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(verdict.wrong for verdict in verdicts))


def build_parser() -> Parser:
    parser = Parser(prog="faults.bash", description=__doc__)
    flag = parser.add_argument
    flag("--quick", action="store_true", help="only a part of every group")
    flag("--only", nargs="+", metavar="GROUP", choices=[g.name for g in GROUPS], help="only these groups")
    flag("--case", metavar="TEXT", default="", help="only cases with this text in their names")
    flag("--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help="cases at once; default: cores")
    flag("--keep", action="store_true", help="keep the folders of all runs, and say where they are")
    flag("--json", type=Path, metavar="FILE", help="write the verdicts to this file too")
    return parser


def prepare(root: Path, groups: Sequence[Group], args: argparse.Namespace) -> list[tuple[Group, Case]]:
    """Import what runs import, make the small runs that cases begin with, and choose the cases."""
    place = Place(root / "first", root / "prepared")
    place.root.mkdir()
    place.take("data")
    warm(Start(COMMAND, place.root))
    warm(Start(EVALUATION, place.root))
    chosen = [(group, case) for group in groups for case in group.cases(place)]
    return [
        (group, case)
        for group, case in chosen
        if (case.quick or not args.quick) and args.case in f"{group.name}: {case.name}"
    ]


# ------------------------------------------------------------------------------------------------ running


class Job(NamedTuple):
    group: Group
    case: Case
    begin: float
    verdict: int  # a pipe, from which it is read


def run_all(waiting: Sequence[tuple[Group, Case]], root: Path, at_once: int) -> list[Verdict]:
    """Every case in a process and a session of its own, so that it can leave nothing behind."""
    verdicts: list[Verdict] = []
    left = sorted(waiting, key=lambda entry: entry[1].limit)  # the last is the first to be done
    running: dict[int, Job] = {}
    begin = time.monotonic()
    try:
        while left or running:
            while left and len(running) < at_once:
                group, case = left.pop()
                pid, pipe = begin_case(group, case, root)
                running[pid] = Job(group, case, time.monotonic(), pipe)
            time.sleep(0.01)
            for pid in ended(running):
                job = running.pop(pid)
                verdicts.append(verdict_of(job))
                end_session(pid)
                show_progress(len(verdicts), len(waiting), verdicts, begin)
    finally:
        for pid in running:  # it was interrupted
            end_session(pid)
    if sys.stderr.isatty():
        print(f"\r{'':{WIDTH - 1}}\r", end="", file=sys.stderr)
    return verdicts


def begin_case(group: Group, case: Case, root: Path) -> tuple[int, int]:
    """Fork the process of a case: its id, and the pipe from which its verdict can be read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    wrong: str | None = "the case itself failed"
    try:
        os.setsid()
        os.close(reading)
        place = Place(root / f"{group.name}-{os.getpid()}", root / "prepared")
        place.root.mkdir()
        wrong = case.fault(place)
        wrong = f"{NOTED}{wrong}" if isinstance(wrong, Noted) else wrong
    except Skip as skip:
        wrong = f"{SKIPPED}{skip}"
    except TimeoutError as hung:
        wrong = str(hung)
    except BaseException:
        wrong = "the case itself failed: " + " ".join(traceback.format_exc().split())[-600:]
    finally:
        os.write(writing, (wrong or "").encode(errors="replace")[:4000])
        os._exit(0)


def ended(running: dict[int, Job]) -> Iterator[int]:
    """The cases whose processes are no more; those over their time are ended first."""
    for pid, job in list(running.items()):
        if time.monotonic() - job.begin > job.case.limit:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, os.WNOHANG)[0]:
            yield pid


def verdict_of(job: Job) -> Verdict:
    # Only what is in the pipe: a process that the case left behind may hold its other end open.
    os.set_blocking(job.verdict, False)
    said = b""
    with suppress(BlockingIOError):
        said = os.read(job.verdict, 4096)
    os.close(job.verdict)
    text = said.decode(errors="replace")
    if time.monotonic() - job.begin > job.case.limit:
        text = f"it hung for {job.case.limit:.0f} s"
    note = next((text.removeprefix(start) for start in (SKIPPED, NOTED) if text.startswith(start)), "")
    return Verdict(job.group, job.case, None if note else text or None, note)


def end_session(leader: int) -> None:
    """Kill what is left of the processes that a case started."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ProcessLookupError):
            if os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------ showing


def show_progress(done: int, total: int, verdicts: Sequence[Verdict], begin: float) -> None:
    if not sys.stderr.isatty():
        return
    failed = sum(verdict.wrong is not None for verdict in verdicts)
    left = (time.monotonic() - begin) / done * (total - done)
    text = f"{done} of {total} cases, {failed} not as intended, {left:.0f} s left"
    last = verdicts[-1]
    print(
        f"\r{f'{text} ({last.group.name}: {last.case.name})':{WIDTH - 1}.{WIDTH - 1}}",
        end="",
        file=sys.stderr,
    )


def table(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> str:
    """A row for each group, then what is to be said of single cases."""
    rows = [f"{'group':<50} {'cases':>6} {'as intended':>12}"]
    for group in groups:
        ours = [verdict for verdict in verdicts if verdict.group is group]
        if ours:
            good = sum(verdict.wrong is None for verdict in ours)
            rows.append(f"{group.name + ': ' + group.title:<50.50} {len(ours):>6} {good:>12}")
    rows = ["-" * WIDTH, *rows, "-" * WIDTH]
    for verdict in verdicts:
        if text := verdict.wrong or verdict.note:
            line = f"{verdict.group.name}: {verdict.case.name}: {printable(text):.{SHOWN}}"
            rows += textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(rows)


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


if __name__ == "__main__":
    sys.exit(run_command(main, "Interrupted; all runs have been ended."))
