"""Fixtures of all tests; the model and the data set are those of `tests.helpers.small`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.helpers.small import random_inputs, write_dataset, write_pretrained

from common.cli import ASKING, STARTED_IN
from tasks.finetune.args import VqaArgs


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU, before torch looks for one, unless tests/gpu is what is asked for.

    The numbers of all other tests are those of the CPU, on every machine.
    """
    chosen = config.option.markexpr.split()[:1] == ["gpu"] or any("tests/gpu" in arg for arg in config.args)
    if not chosen or os.environ.get("SPOTTUNE_TEST_DEVICE") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.pop(STARTED_IN, None)  # of the launcher of the tests: here paths count from the working folder
    # What a shell starts in the background, or a queue, may ignore signals that ask to stop, and then all
    # processes of tests would. SIGHUP is left as it is: nohup means it.
    for number in {*ASKING} - {signal.SIGHUP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds a small data set under the name vqav2."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "vqav2")
    return root


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return random_inputs(6)


@pytest.fixture
def pictures() -> None:
    """For tests that look at the pictures of the policy, which runs draw for them only."""


@pytest.fixture
def args(
    data: Path,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> VqaArgs:
    """A run of three epochs of four steps, in an empty working folder.

    Tests change it with `dataclasses.replace`; a module whose tests all change the same says so once, in a
    fixture of the same name that takes this one.
    """
    monkeypatch.chdir(tmp_path)
    if "pictures" not in request.fixturenames:  # drawing takes as long as all else that so small a run does
        monkeypatch.setattr("report.policy_plot.draw_policy", lambda *_: None)
    return VqaArgs(
        version="run",
        strategy="SpotTune_Block",
        dataset="vqav2",
        data=str(data),
        pretrained=str(pretrained),
        epochs=3,
        batch_size=28,
        lr=3e-3,
        log_every=1,
        tqdm=False,
        wandb="off",
        report=False,
        seed=1,
    )
