"""Who may import whom, who may know what, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.paths import SRC

PACKAGES = {path.parent.name for path in SRC.glob("*/__init__.py")}
MAY_IMPORT = {  # of the project, and of other libraries; each may import itself and the standard library
    "common": (set(), {"tqdm"}),
    "kernels": (set(), {"torch"}),
    "adaptive": (set(), {"torch", "safetensors"}),  # safetensors in files.py, see below
    "lxmert": (
        {"common", "kernels"},
        {"torch", "transformers", "numpy", "safetensors", "huggingface_hub", "tqdm"},
    ),
    "regions": ({"common"}, {"numpy", "torch", "PIL"}),
    "vqadata": ({"common"}, {"numpy", "torch", "PIL", "tqdm", "pybase64"}),
    "training": ({"common"}, {"torch", "accelerate", "numpy", "safetensors", "tqdm", "wandb", "PIL"}),
    "report": ({"common"}, {"numpy", "matplotlib", "jinja2", "tqdm"}),
}
UNKNOWN_WORDS = {  # what a package has not one word of
    "adaptive": ("lxmert", "vision", "language", "question", "vqa", "head_dim", "attention head"),
    "lxmert": ("spottune", "strategy", "policy", "run folder", "result.json"),
}
FILES = sorted(SRC.rglob("*.py"))
EXAMPLES = SRC / "adaptive" / "examples"  # as a user would write them, with transformers and accelerate


def imports_of(text: str) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from tasks import vqa` names a module, `from tasks.vqa import main` does not: list both.
            modules |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def packages_of(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports_of(path.read_text(encoding="utf-8"))}


def test_every_package_has_its_rule() -> None:
    assert {*MAY_IMPORT, "tasks"} == PACKAGES


def test_tests_mirror_the_source() -> None:
    assert {path.parent.name for path in (SRC.parent / "tests").glob("*/test_*.py")} >= PACKAGES


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_neither_each_other_nor_tasks(package: str) -> None:
    allowed, _ = MAY_IMPORT[package]
    for path in (SRC / package).rglob("*.py"):
        assert packages_of(path) & PACKAGES <= {package, *allowed}, path


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_keep_to_their_libraries(package: str) -> None:
    _, allowed = MAY_IMPORT[package]
    for path in {*(SRC / package).rglob("*.py")} - {*EXAMPLES.glob("*.py")}:
        assert packages_of(path) - set(sys.stdlib_module_names) - PACKAGES <= allowed, path


def test_of_the_engine_only_its_files_know_a_file_format() -> None:
    importers = {path.name for path in (SRC / "adaptive").glob("*.py") if "safetensors" in packages_of(path)}
    assert importers == {"files.py"}


def test_parts_of_commands_do_not_import_commands() -> None:
    commands = {f"tasks.{path.stem}" for path in (SRC / "tasks").glob("*.py")} - {"tasks.__init__"}
    for path in (SRC / "tasks").glob("*/*.py"):
        assert not imports_of(path.read_text(encoding="utf-8")) & commands, path


def test_all_forms_of_import_are_seen() -> None:
    text = "import a.b\nfrom tasks import vqa\ndef f():\n    from c.d import e\n"
    assert imports_of(text) == {"a.b", "tasks", "tasks.vqa", "c.d", "c.d.e"}


@pytest.mark.parametrize("package", UNKNOWN_WORDS)
def test_a_package_has_not_one_word_of_what_it_must_not_know(package: str) -> None:
    for path in (SRC / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in UNKNOWN_WORDS[package] if word in text], path


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
