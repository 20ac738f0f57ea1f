"""Who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGES = {path.name for path in SRC.iterdir() if (path / "__init__.py").exists()}
SIBLINGS = {"adaptive", "lxmert", "vqadata", "training", "report"}
GROUND = {"common", "kernels"}
MAY_USE = {
    "adaptive": set(),
    "kernels": set(),
    "common": set(),
    "lxmert": {"common", "kernels"},
}  # else: common
THIRD_PARTY = {
    "common": {"tqdm"},
    "kernels": {"torch"},
    "adaptive": {"torch"},
    "lxmert": {"torch", "transformers", "numpy", "safetensors", "huggingface_hub", "tqdm"},
    "vqadata": {"numpy", "torch", "PIL", "tqdm", "pybase64"},
    "training": {"torch", "accelerate", "tqdm", "wandb"},
    "report": {"numpy", "matplotlib", "tqdm"},
}
FILES = sorted(SRC.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_all_packages_are_known() -> None:
    assert SIBLINGS | GROUND | {"tasks"} == PACKAGES


@pytest.mark.parametrize("package", sorted(SIBLINGS | GROUND))
def test_siblings_import_neither_each_other_nor_tasks(package: str) -> None:
    for path in (SRC / package).rglob("*.py"):
        assert not (imported(path) & PACKAGES) - {package, *MAY_USE.get(package, {"common"})}, path


@pytest.mark.parametrize("package", sorted(SIBLINGS | GROUND))
def test_packages_keep_to_their_libraries(package: str) -> None:
    for path in (SRC / package).rglob("*.py"):
        outside = imported(path) - set(sys.stdlib_module_names) - PACKAGES
        assert outside <= THIRD_PARTY[package], path


def test_the_engine_has_not_one_word_of_lxmert_in_it() -> None:
    words = ("lxmert", "vision", "language", "question", "vqa", "head_dim", "attention head")
    for path in (SRC / "adaptive").glob("*.py"):
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in words if word in text], path


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No file, no output, no change of seeds or threads, and W&B is not even loaded."""
    modules = [
        ".".join(path.relative_to(SRC).with_suffix("").parts) for path in FILES if path.name != "__init__.py"
    ]
    code = (
        "import importlib, sys, torch\n"
        "state, threads = torch.get_rng_state(), torch.get_num_threads()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert torch.equal(state, torch.get_rng_state()) and threads == torch.get_num_threads()\n"
        "assert 'wandb' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--not-a-flag"],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(SRC),
            "PATH": "",
            "HOME": str(tmp_path),
            "MPLCONFIGDIR": str(tmp_path / "mpl"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"mpl", ".cache", ".config"}
