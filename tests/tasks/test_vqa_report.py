"""The command that draws and tabulates earlier runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.paths import OLD_RUN, SRC

from tasks import vqa_report


def test_a_run_is_drawn_by_its_version_name_without_a_display(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "snap" / "vqa" / "mine")
    script = SRC / "tasks" / "vqa_report.py"
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, 'policy', 'mine']\n"
        f"sys.path[0] = {str(script.parent)!r}\n"  # as it is for a script
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(SRC), "MPLBACKEND": "tkagg", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = ["policy_by_question_type.png", "policy_train.png", "policy_val.png"]
    assert sorted(path.name for path in (tmp_path / "visualizations" / "mine").iterdir()) == names
    assert done.stdout.splitlines()[0] == "wrote visualizations/mine/policy_train.png"


def test_a_run_is_given_by_version_or_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    found = {text: vqa_report.find_run(text).folder for text in ("demo", "snap/vqa/demo", "kept")}
    assert found == {
        "demo": Path("snap/vqa/demo"),
        "snap/vqa/demo": Path("snap/vqa/demo"),
        "kept": Path("kept"),
    }


@pytest.mark.parametrize("command", ["policy", "results"])
def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SRC / "tasks" / "vqa_report.py"), command, "nowhere"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SRC), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "snap/vqa/nowhere" in done.stderr
