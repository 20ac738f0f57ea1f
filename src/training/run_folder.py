"""The run folder: what was asked for (args.json) and with what (env.json)."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import RunError

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")


def open_run_folder(folder: Path, arguments: Mapping[str, Any], *, free: frozenset[str]) -> None:
    """Make the folder, or make sure that an existing one was made with the same arguments.

    Arguments named in `free` do not influence the result and may differ. Writes args.json.
    """
    arguments = json.loads(json.dumps(arguments, default=str))
    file = folder / "args.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _require_same(json.loads(file.read_text(encoding="utf-8")), arguments, free, folder)
        write_json(file, arguments)
    except OSError as error:
        raise RunError(f"The run folder {folder} cannot be written: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise RunError(f"{file} is damaged. Delete {folder} or choose another version name.") from None


def _require_same(old: dict[str, Any], new: dict[str, Any], free: frozenset[str], folder: Path) -> None:
    differing = [
        f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
        for name in sorted({*old, *new} - free)
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise RunError(
            f"{folder} holds a run made with other arguments ({'; '.join(differing)}). "
            "Choose another version name, repeat the earlier arguments to go on, or delete the folder."
        )


def describe_environment(device: str, data_files: list[Path]) -> dict[str, Any]:
    """Commit, versions, device, and a sha256 of each data file."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": device,
        "command": sys.argv,
        "data_sha256": {str(path): sha256_of(path) for path in data_files},
    }


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write aside and rename, so that a reader never meets half a file."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    aside.replace(path)


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy without its history, or no git
    return done.stdout.strip()
