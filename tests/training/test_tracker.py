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

from training.tracker import Tracker


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(tmp_path, {}, wandb="off")


def test_what_is_said_goes_to_the_terminal_and_the_log(
    tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.say("epoch 1: 72.5 %")
    tracker.say()
    tracker.say("größer")
    assert capsys.readouterr().out == "epoch 1: 72.5 %\n\ngrößer\n"
    assert (tracker.folder / "train.log").read_text(encoding="utf-8") == "epoch 1: 72.5 %\n\ngrößer\n"


def test_metrics_are_lines_with_their_step(tracker: Tracker) -> None:
    tracker.record({"train/loss": 0.1, "epoch": 1}, 5)
    tracker.record({"train/loss": 1 / 3}, 10)
    expected = [{"step": 5, "train/loss": 0.1, "epoch": 1}, {"step": 10, "train/loss": 1 / 3}]
    assert lines(tracker.folder) == expected


def test_a_resumed_run_goes_on_behind_what_was_there(tracker: Tracker) -> None:
    tracker.say("first")
    tracker.record({"x": 1}, 1)
    again = Tracker(tracker.folder, {}, wandb="off")
    again.say("second")
    again.record({"x": 2}, 2)
    assert (tracker.folder / "train.log").read_text() == "first\nsecond\n"
    assert [line["x"] for line in lines(tracker.folder)] == [1, 2]


def test_rewinding_drops_later_lines_and_half_a_line(tracker: Tracker) -> None:
    for step in (1, 2, 3, 4):
        tracker.record({"x": step}, step)
    with (tracker.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "x"')  # the machine stopped while writing
    tracker.rewind(2)
    tracker.record({"x": "again"}, 3)
    assert [(line["step"], line["x"]) for line in lines(tracker.folder)] == [(1, 1), (2, 2), (3, "again")]


def test_rewinding_before_anything_was_recorded_is_nothing(tracker: Tracker) -> None:
    tracker.rewind(0)
    assert not any(tracker.folder.iterdir())


def test_other_processes_are_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would be an error
    main = Tracker(tmp_path, {}, wandb="off")
    main.record({"x": 1}, 5)
    other = Tracker(tmp_path, {}, wandb="online", speaks=False)
    other.say("hello")
    other.record({"x": 1}, 1)
    other.picture("policy", tmp_path / "policy.png", 1)
    other.rewind(0)
    other.close()
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert lines(tmp_path) == [{"step": 5, "x": 1}]


def test_wandb_off_never_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(tmp_path, {}, wandb="off")
    tracker.say("hello")
    tracker.record({"x": 1}, 1)
    tracker.picture("policy", tmp_path / "policy.png", 1)
    tracker.close()
    assert {path.name for path in tmp_path.iterdir()} == {"train.log", "metrics.jsonl"}


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
    Tracker(folder, {}, wandb=wandb)
    return [options["mode"] for options in fake.started]


def test_metrics_and_pictures_reach_wandb_with_their_step(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, {"lr": 1}, wandb="auto")
    tracker.record({"x": 1}, 4)
    tracker.picture("policy", Path("policy.png"), 5)
    tracker.close()
    assert fake.started[0]["config"] == {"lr": 1}
    assert fake.logged == [({"x": 1}, 4), ({"policy": "image of policy.png"}, 5)]
    assert fake.finished == 1


def test_a_resumed_run_has_the_same_curves_and_another_run_others(fake: FakeWandb, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for name in ("a", "a", "b"):
        Tracker(tmp_path / name, {}, wandb="auto")
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
    tracker = Tracker(tmp_path, {}, wandb="online")
    assert [options["mode"] for options in fake.started] == ["online", "offline"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "timed out" in said and "offline" in said
    tracker.record({"x": 1}, 1)
    assert fake.logged == [({"x": 1}, 1)]


SCRIPT = """
import sys
from pathlib import Path
from training.tracker import Tracker
tracker = Tracker(Path(sys.argv[1]), {"lr": 1}, wandb="auto")
print("offline:", tracker._wandb.settings._offline)
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
