from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.helpers.paths import SRC

from training.tracker import Tracker, open_tracker


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make(folder: Path, wandb: str = "off", resumed_at: int = 0, **config: Any) -> Tracker:
    return open_tracker(folder, config, wandb, resumed_at)


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


def test_a_resumed_run_goes_on_behind_what_was_there(tmp_path: Path) -> None:
    for step, text in ((1, "first"), (2, "second")):
        make(tmp_path, resumed_at=step - 1).record({"x": step}, step, text)
    assert (tmp_path / "train.log").read_text() == "first\nsecond\n"
    assert [line["x"] for line in lines(tmp_path)] == [1, 2]


def test_resuming_drops_later_lines_and_damaged_ones(tmp_path: Path) -> None:
    tracker = make(tmp_path)
    for step in (1, 2, 3, 4):
        tracker.record({"x": step}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('[]\n{"step": 2, "x"')  # the machine stopped while writing
    make(tmp_path, resumed_at=2).record({"x": "again"}, 3)
    assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, "again")]


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


def test_a_broken_installation_of_wandb_is_no_reason_not_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    make(tmp_path, "offline").record({"x": 1}, 1)
    assert "One way of reporting is left out (AttributeError" in capsys.readouterr().out
    assert lines(tmp_path) == [{"step": 1, "x": 1}]


class FakeWandb:
    """Records what W&B is asked for; `answers` false is a server that cannot be reached."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.finished = 0
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))

    def init(self, **options: Any) -> FakeWandb:
        self.started.append(options)
        if options["mode"] == "online" and not self.answers:
            raise self.errors.Error("timed out")
        return self

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def Image(self, path: str) -> str:
        return f"image of {path}"

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append((metrics, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWandb:
    """In place of W&B, for a user who has never logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def modes(fake: FakeWandb, folder: Path, wandb: str) -> list[str]:
    make(folder, wandb)
    return [options["mode"] for options in fake.started]


def test_metrics_and_pictures_reach_wandb_with_their_step(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = make(tmp_path, "auto", lr=1)
    tracker.record({"x": 1}, 4)
    tracker.record({"policy": Path("policy.png")}, 5)
    tracker.say("nothing for W&B")
    tracker.close()
    assert fake.started[0]["config"] == {"lr": 1}
    assert fake.logged == [({"x": 1}, 4), ({"policy": "image of policy.png"}, 5)]
    assert fake.finished == 1


def test_a_resumed_run_has_the_same_curves_and_another_run_others(fake: FakeWandb, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for name in ("a", "a", "b"):
        make(tmp_path / name, "auto")
    first, again, other = (options["id"] for options in fake.started)
    assert first == again != other
    assert {options["resume"] for options in fake.started} == {"allow"}


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


def test_a_server_that_does_not_answer_costs_one_line(
    fake: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answers = False
    tracker = make(tmp_path, "online")
    assert [options["mode"] for options in fake.started] == ["online", "offline"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "timed out" in said and "offline" in said
    tracker.record({"x": 1}, 1)
    assert fake.logged == [({"x": 1}, 1)]


SCRIPT = """
import sys
from pathlib import Path
from training.tracker import open_tracker
tracker = open_tracker(Path(sys.argv[1]), {"lr": 1}, "auto", 0)
print("offline:", tracker.sinks[-1]._run.settings._offline)
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
    assert done.stdout == "offline: True\n"
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert calls == []
