"""run/slurm.sbatch, with stand-ins for Slurm and the trainer: when warned, it saves and is queued again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.helpers.paths import ROOT

STAND_INS = {
    # As Slurm's own: hands the signals that it gets on to what it started.
    "srun": """
        "$@" & task=$!
        trap 'kill -USR1 $task' USR1
        while kill -0 $task 2>/dev/null; do code=0; wait $task || code=$?; done
        exit $code""",
    "scontrol": """
        echo "$@" >>calls
        if [[ $1 == show ]]; then echo head; echo other; fi""",
    # In the place of Python: the trainer, or the launcher of two of them that fails as they do.
    "python": """
        echo "$@" >>calls
        if [[ $1 == -m ]]; then
            python src/tasks/vqa.py & first=$!
            python src/tasks/vqa.py & second=$!
            touch started
            wait $first $second || exit 1
            exit
        fi
        trap 'echo saved >>calls; exit 138' USR1
        touch started
        for _ in $(seq $PATIENCE); do sleep 0.02; done
        exit $CODE""",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    shutil.copy(ROOT / "run" / "slurm.sbatch", tmp_path / "run")
    (tmp_path / "run" / "env.bash").write_text("PYTHON=python\n")
    for name, text in STAND_INS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    return tmp_path


def submit(
    cluster: Path, *flags: str, gpus: int = 1, code: int = 0, patience: int = 2
) -> subprocess.Popen[str]:
    """Start the job, whose trainer would end with `code` after so many fiftieths of a second."""
    job = {"SLURM_SUBMIT_DIR": str(cluster), "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "head,other"}
    job |= {
        "SLURM_GPUS_ON_NODE": str(gpus),
        "SLURM_NNODES": "1",
        "CODE": str(code),
        "PATIENCE": str(patience),
    }
    path = f"{cluster / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(cluster / "run" / "slurm.sbatch"), *flags],
        env={**os.environ, **job, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(cluster: Path) -> list[str]:
    return (cluster / "calls").read_text().splitlines()


@pytest.mark.parametrize("gpus", [1, 2])
def test_warned_it_has_the_run_save_and_is_queued_again(cluster: Path, gpus: int) -> None:
    job = submit(cluster, "block", "--strategy", "SpotTune_Block", gpus=gpus, patience=1000)
    deadline = time.monotonic() + 20
    while not (cluster / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # until both training processes heed the signal
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == 0, output
    assert calls(cluster).count("saved") == gpus
    assert calls(cluster).count("requeue 77") == 1


@pytest.mark.parametrize("code", [0, 2, 1])
def test_a_run_that_ends_by_itself_hands_on_its_exit_code_and_is_not_queued_again(
    cluster: Path, code: int
) -> None:
    job = submit(cluster, "block", code=code)
    output, _ = job.communicate(timeout=20)
    assert job.returncode == code, output
    assert "requeue 77" not in calls(cluster)
    assert "src/tasks/vqa.py --version block --no-tqdm" in calls(cluster)


def test_several_gpus_have_a_process_each_and_meet_at_the_first_node(cluster: Path) -> None:
    submit(cluster, "full", "--seed", "3", gpus=2).communicate(timeout=20)
    (launch,) = (call for call in calls(cluster) if call.startswith("-m torch.distributed.run"))
    assert "--nnodes 1 --nproc-per-node 2" in launch and "--rdzv-endpoint head:20077" in launch
    assert launch.endswith("src/tasks/vqa.py --version full --no-tqdm --seed 3")


def test_without_a_version_it_says_how_it_is_used(cluster: Path) -> None:
    job = submit(cluster)
    output, _ = job.communicate(timeout=20)
    assert (job.returncode, output.count("\n")) == (2, 1)
    assert "sbatch run/slurm.sbatch <version>" in output
