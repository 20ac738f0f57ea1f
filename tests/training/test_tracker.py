from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.paths import SRC

from common.errors import UserError
from training.tracker import Channels, Curves, Tracker, open_tracker, require_trackers


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make(folder: Path, wandb: str = "off", curves: Curves | None = None, **config: Any) -> Tracker:
    return open_tracker(folder, config, Channels(mode=wandb), curves or Curves())


def test_what_is_said_goes_to_the_terminal_and_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = make(tmp_path)
    tracker.say("epoch 1: 72.5 %")
    tracker.record({}, 3, "größer")
    assert capsys.readouterr().out == "epoch 1: 72.5 %\ngrößer\n"
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "epoch 1: 72.5 %\ngrößer\n"


def test_metrics_are_lines_with_their_step_and_no_number_is_null(tmp_path: Path) -> None:
    tracker = make(tmp_path)
    tracker.record({"train/loss": 0.1, "epoch": 1, "policy": Path("p.png")}, 5)
    tracker.record({"train/loss": float("nan"), "by_type": {"colour": float("inf")}}, 10)
    assert lines(tmp_path) == [
        {"step": 5, "train/loss": 0.1, "epoch": 1},
        {"step": 10, "train/loss": None, "by_type": {"colour": None}},
    ]


def test_a_resumed_run_goes_on_behind_what_was_saved_whatever_its_file_holds(tmp_path: Path) -> None:
    curves = Curves()
    make(tmp_path, curves=curves).record({"x": 1}, 1, "first")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "x": "lost"}\n{"step": 3, "x"')  # written after the save, then killed
    make(tmp_path, curves=curves).record({"x": 2}, 2, "second")
    assert (tmp_path / "train.log").read_text() == "first\nsecond\n"
    assert [line["x"] for line in lines(tmp_path)] == [1, 2]
    assert curves.lines == (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)


def test_without_sinks_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker([])
    tracker.say("hello")
    tracker.record({"x": 1}, 1, "text")
    tracker.close()
    assert capsys.readouterr().out == ""


def test_wandb_off_never_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = make(tmp_path)
    tracker.record({"x": 1}, 1, "hello")
    tracker.close()
    assert {path.name for path in tmp_path.iterdir()} == {"train.log", "metrics.jsonl"}


class Broken:
    """A sink that fails in one of its methods."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = 0

    def write(self, text: str, values: dict[str, Any], step: int) -> None:
        self.calls += 1
        if self.where == "write":
            raise OSError("no space left")

    def close(self) -> None:
        if self.where == "close":
            raise RuntimeError("the server is gone")


@pytest.mark.parametrize("where", ["write", "close"])
def test_a_sink_that_fails_is_left_out_with_one_sentence_and_the_others_go_on(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker, broken = make(tmp_path), Broken(where)
    tracker.sinks.insert(0, broken)
    for step in (1, 2, 3):
        tracker.record({"x": step}, step)
    tracker.close()
    assert capsys.readouterr().out.count("Broken failed and is left out from here on") == 1
    assert broken.calls == (1 if where == "write" else 3)
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize("broken", ["metrics.jsonl", "train.log"])
def test_a_file_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / broken).mkdir()
    tracker = make(tmp_path)
    tracker.record({"x": 1}, 1, "hello")
    tracker.record({"x": 2}, 2, "again")
    assert "left out" in capsys.readouterr().out
    other = ({"metrics.jsonl", "train.log"} - {broken}).pop()
    assert len((tmp_path / other).read_text().splitlines()) >= 2


class Exiting(Broken):
    """A sink that wants to end the process."""

    def write(self, text: str, values: dict[str, Any], step: int) -> None:
        raise SystemExit(3)


def test_a_sink_cannot_end_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = make(tmp_path)
    tracker.sinks.insert(0, Exiting("write"))
    tracker.record({"x": 1}, 1, "hello")
    assert "Exiting failed and is left out from here on: 3" in capsys.readouterr().out
    assert lines(tmp_path) == [{"step": 1, "x": 1}]


def test_ctrl_c_in_a_sink_is_no_failure_of_the_sink(tmp_path: Path) -> None:
    class Interrupting(Broken):
        def write(self, text: str, values: dict[str, Any], step: int) -> None:
            raise KeyboardInterrupt

    tracker = Tracker([Interrupting("write")])
    with pytest.raises(KeyboardInterrupt):
        tracker.say("hello")
    assert len(tracker.sinks) == 1


def test_neither_terminal_nor_log_gets_what_a_terminal_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path).say("the answer \x1b[31m\ud83d\tis\nred")
    for said in (capsys.readouterr().out, (tmp_path / "train.log").read_text(encoding="utf-8")):
        assert said == "the answer \\x1b[31m\\ud83d\tis\nred\n"


# A package of the name wandb that keeps what it is asked for in the file `calls` beside it.
STAND_IN = """
import json, os, sys, time
from pathlib import Path

def note(what, **details):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write(json.dumps([what, details]) + "\\n")

class Settings:
    def __init__(self, **options): pass

class Image:
    def __init__(self, path): self.path = path

class Run:
    offline = False
    def log(self, values, step):
        pictures = {k: f"image of {v.path}" for k, v in values.items() if isinstance(v, Image)}
        note("log", values=values | pictures, step=step)
    def finish(self): note("finish")

def init(settings, **options):
    variables = sorted(name for name in os.environ if name.startswith("WANDB_"))
    note("init", **options, variables=variables)
    return Run()
"""


class FakeWandb:
    """In place of W&B, for a user who has never logged in."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "wandb.py"
        self.write("")

    def write(self, more: str) -> None:
        """Let it have more code, which overrides the other."""
        self.package.write_text(STAND_IN + more)

    def calls(self, name: str) -> list[dict[str, Any]]:
        file = self.package.with_name("calls")
        calls = map(json.loads, file.read_text().splitlines() if file.exists() else [])
        return [details for what, details in calls if what == name]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWandb:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for folder in ("home", "packages"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return FakeWandb(tmp_path / "packages")


def modes(fake: FakeWandb, folder: Path, wandb: str) -> list[str]:
    make(folder, wandb).close()
    return [options["mode"] for options in fake.calls("init")]


def test_metrics_and_pictures_reach_wandb_with_their_step(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = make(tmp_path, "auto", lr=1)
    tracker.record({"x": 1, "by_type": {"colour": 0.5}}, 4)
    tracker.record({"policy": Path("policy.png")}, 5)
    tracker.say("nothing for W&B")
    tracker.close()
    assert fake.calls("init")[0]["config"] == {"lr": 1}
    assert [(call["values"], call["step"]) for call in fake.calls("log")] == [
        ({"x": 1, "by_type": {"colour": 0.5}}, 4),
        ({"policy": "image of policy.png"}, 5),
    ]
    assert len(fake.calls("finish")) == 1


def test_a_resumed_run_has_the_same_curves_and_another_run_others(fake: FakeWandb, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for name in ("a", "a", "b"):
        make(tmp_path / name, "auto").close()
    first, again, other = (options["id"] for options in fake.calls("init"))
    assert first == again != other
    assert {options["resume"] for options in fake.calls("init")} == {"allow"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"../../other", "größe".encode(), None])
def test_an_id_that_cannot_be_used_is_replaced(
    fake: FakeWandb, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "wandb_id"
    file.mkdir() if content is None else file.write_bytes(content)
    make(tmp_path, "auto").close()
    (call,) = fake.calls("init")
    assert re.fullmatch("[0-9a-f]{12}", call["id"])
    assert file.is_dir() or file.read_text() == call["id"]


def test_the_users_project_is_taken(fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "auto").close()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    make(tmp_path, "auto").close()
    assert [options["project"] for options in fake.calls("init")] == ["lxmert-spottune", "mine"]


def test_project_entity_and_group_are_those_of_the_flags_before_the_users_variables(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "me")
    place = {"project": "ours", "group": "sweep"}
    open_tracker(tmp_path, {}, Channels(place=place), Curves()).close()
    (options,) = fake.calls("init")
    assert (options["project"], options["group"]) == ("ours", "sweep")
    assert "entity" not in options and "WANDB_ENTITY" in options["variables"]  # which W&B reads itself


def test_auto_without_a_login_is_offline(fake: FakeWandb, tmp_path: Path) -> None:
    assert modes(fake, tmp_path, "auto") == ["offline"]


def test_auto_with_a_key_is_online(fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert modes(fake, tmp_path, "auto") == ["online"]


NETRC = "machine {} login user password 0123456789"


@pytest.mark.parametrize(
    ("content", "server", "mode"),
    [
        (NETRC.format("api.wandb.ai"), None, "online"),
        (NETRC.format("example.org"), None, "offline"),
        (NETRC.format("wandb.example.org"), "https://wandb.example.org/", "online"),
        (NETRC.format("api.wandb.ai"), "https://wandb.example.org/", "offline"),
        ("this is no netrc", None, "offline"),
    ],
)
def test_auto_is_online_if_the_server_is_in_netrc(
    fake: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    server: str | None,
    mode: str,
) -> None:
    file = tmp_path / "home" / ".netrc"
    file.write_text(content)
    file.chmod(0o600)
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert modes(fake, tmp_path, "auto") == [mode]


@pytest.mark.parametrize("mode", ["offline", "online", "disabled"])
def test_auto_respects_wandb_mode(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert modes(fake, tmp_path, "auto") == [mode]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_mode_that_was_asked_for_is_taken(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert modes(fake, tmp_path, mode) == [mode]


def test_an_empty_variable_counts_as_none(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_ENTITY"):
        monkeypatch.setenv(name, "")
    assert modes(fake, tmp_path, "auto") == ["offline"]
    assert "WANDB_ENTITY" not in fake.calls("init")[0]["variables"]


BEGINS_OFFLINE_ONLY = """
def init(settings, mode, **options):
    note("init", mode=mode, id=options["id"], pid=os.getpid(), own="WANDB_ENTITY" in os.environ)
    if mode != "offline" or "WANDB_ENTITY" in os.environ:
        {what}
    return Run()
"""


@pytest.mark.parametrize("what", ["raise RuntimeError('timed out')", "sys.exit(0)", "time.sleep(1000)"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_does_not_begin_begins_again_offline_without_the_users_settings(
    fake: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    mode: str,
) -> None:
    fake.write(
        "import training.wandb_process\ntraining.wandb_process.INIT_TIMEOUT = 0.2\n"
        "sys.modules['__main__'].INIT_TIMEOUT = 0.2\n" + BEGINS_OFFLINE_ONLY.format(what=what)
    )
    monkeypatch.setenv("WANDB_ENTITY", "nobody")
    tracker = make(tmp_path, mode)
    tracker.record({"x": 1}, 1)
    tracker.close()
    first, second = fake.calls("init")
    assert (first["mode"], second["mode"], second["own"]) == (mode, "offline", False)
    assert first["id"] == second["id"]
    assert [call["values"] for call in fake.calls("log")] == [{"x": 1}]
    said = capsys.readouterr().out
    assert said.count("W&B did not begin") == 1
    assert ("timed out" in said) == ("timed out" in what)
    assert max(map(len, said.splitlines())) <= 80


IN_LOG = "class Run(Run):\n    def log(self, values, step): {}\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('half installed')", "RuntimeError: half installed"),
        ("sys.exit(0)", "SystemExit: 0"),
        ("del init", "AttributeError: module 'wandb' has no attribute 'init'"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        (IN_LOG.format("raise ValueError('bad value')"), "ValueError: bad value"),
        (IN_LOG.format("sys.exit(0)"), "SystemExit: 0"),
        (IN_LOG.format("os._exit(3)"), "its process ended with exit code 3"),
        (IN_LOG.format("os.kill(os.getpid(), 9)"), "its process ended with exit code -9"),
        ("class Run(Run):\n    def finish(self): raise OSError('no space')", "OSError: no space"),
    ],
)
def test_wandb_that_fails_costs_one_sentence(
    fake: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, reason: str
) -> None:
    fake.write(code)
    tracker = make(tmp_path, "offline")
    for step in (1, 2, 3):
        tracker.record({"x": step}, step)
    tracker.close()
    assert [line["x"] for line in lines(tmp_path)] == [1, 2, 3]
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith(f"Wandb failed and is left out from here on: {reason}")
    assert said.count("left out") == 1


@pytest.mark.parametrize("where", ["log(self, values, step)", "finish(self)"])
def test_wandb_that_hangs_is_ended_in_the_end_and_holds_up_nothing_before(
    fake: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    fake.write(f"class Run(Run):\n    def {where}: time.sleep(1000)\n")
    monkeypatch.setattr("training.tracker.FINISH_TIMEOUT", 1)
    tracker = make(tmp_path, "offline")
    process = tracker.sinks[-1]._process
    begin = time.monotonic()
    for step in range(100):  # more than its pipe takes
        tracker.record({"x" * 2000: step}, step)
    assert time.monotonic() - begin < 1
    tracker.close()
    assert "Wandb failed and is left out from here on: it did not end in 1 s" in capsys.readouterr().out
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_wandb_that_takes_nothing_is_left_out_before_it_fills_the_memory(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.write("time.sleep(1000)")
    monkeypatch.setattr("training.tracker.MOST_WAITING", 100_000)
    tracker = make(tmp_path, "offline")
    for step in range(200):
        tracker.record({"x" * 2000: step}, step)
    assert capsys.readouterr().out.count("it does not take what is logged") == 1
    assert len(lines(tmp_path)) == 200


def test_processes_that_read_data_do_not_keep_the_end_from_wandb(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = make(tmp_path, "offline")
    reader = os.fork()
    if not reader:
        time.sleep(60)
        os._exit(0)
    try:
        begin = time.monotonic()
        tracker.close()
        assert time.monotonic() - begin < 20
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)
    assert len(fake.calls("finish")) == 1


def test_signals_that_end_a_run_leave_its_curves_to_be_finished(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = make(tmp_path, "offline")
    tracker.record({"x": 1}, 1)
    while not fake.calls("log"):
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        tracker.sinks[-1]._process.send_signal(number)
    tracker.close()
    assert len(fake.calls("finish")) == 1


def test_a_killed_run_leaves_its_curves_whole(fake: FakeWandb, tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path\n"
    script += (
        "from training.tracker import Channels, Curves, open_tracker\n"
        "tracker = open_tracker(Path(sys.argv[1]), {}, Channels(mode='offline'), Curves())\n"
        "tracker.record({'x': 1}, 1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{fake.package.parent}:{SRC}"}
    command = [sys.executable, "-c", script + "os.kill(os.getpid(), 9)", str(tmp_path)]
    subprocess.run(command, env=environment, timeout=60)
    deadline = time.monotonic() + 10
    while not fake.calls("finish") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [call["values"] for call in fake.calls("log")] == [{"x": 1}]
    assert len(fake.calls("finish")) == 1


SCRIPT = """
import sys
from pathlib import Path
from training.tracker import Channels, Curves, open_tracker
tracker = open_tracker(Path(sys.argv[1]), {"lr": 1}, Channels(), Curves())
tracker.record({"x": 1}, 1)
tracker.close()
"""


@pytest.fixture
def visitors() -> Iterator[tuple[str, list[object]]]:
    """The address of a proxy that answers nothing, and who called there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[object] = []

        def listen() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:  # closed
                    return
                calls.append(address)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        server.shutdown(socket.SHUT_RDWR)


def test_the_real_wandb_without_a_login_asks_nobody_and_keeps_curves_offline(
    tmp_path: Path, visitors: tuple[str, list[object]]
) -> None:
    proxy, calls = visitors
    unwanted = ("wandb", "no_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.lower().startswith(unwanted)}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=kept | proxies | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(SRC)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    sync = f"W&B's curves are kept offline. To send them:\n  wandb sync {tmp_path}/wandb/offline-run-*\n"
    assert done.stdout == sync
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert calls == []


# ------------------------------------------------------------------------------------------- TensorBoard


BOARD = Channels(("tensorboard",))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values as TensorBoard shows them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_run_has_every_step_once_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the optional package tensorboard")
    curves = Curves()
    killed = open_tracker(tmp_path, {}, BOARD, curves)
    killed.record({"loss": 4.0}, 1)
    killed.record({"loss": 3.0}, 2)
    saved = list(curves.lines)
    killed.record({"accuracy": 0.25, "by_type": {"colour": 0.5}, "best": None}, 2)  # after the save
    killed.record({"loss": 9.0}, 3)
    killed.close()
    curves.lines = saved
    resumed = open_tracker(tmp_path, {}, BOARD, curves)
    resumed.record({"accuracy": 0.25, "by_type": {"colour": 0.5}}, 2)
    resumed.record({"loss": 2.0}, 3)
    resumed.close()
    assert scalars(tmp_path) == {
        "loss": [(1, 4.0), (2, 3.0), (3, 2.0)],
        "accuracy": [(2, 0.25)],
        "by_type/colour": [(2, 0.5)],
    }
    assert not (tmp_path / "wandb").exists()


def test_a_run_that_begins_again_shows_nothing_of_the_first_start(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the optional package tensorboard")
    for value in (1.0, 2.0):
        tracker = open_tracker(tmp_path, {}, BOARD, Curves())
        tracker.record({"loss": value}, 1)
        tracker.close()
    assert scalars(tmp_path) == {"loss": [(1, 2.0)]}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("tensorboard", "pip install tensorboard"),
        ("wandb,tensorbord", "--tracker takes wandb, tensorboard"),
        ("none,wandb", "both with a comma, or none, not 'none,wandb'"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_refused_in_one_sentence(
    names: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=sentence):
        require_trackers(names)
    assert require_trackers("wandb") == ("wandb",) and require_trackers("none") == ()
