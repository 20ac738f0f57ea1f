"""The way from photos to an answer that data/README.md shows, with easy-VQA or with files of its format."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.helpers.pages import blocks, sections
from tests.helpers.paths import ROOT, SRC
from tests.test_readme import commands_of, script_and_flags, words_of

from tasks import vqa, vqa_prepare

SECTION = sections(ROOT / "data" / "README.md")["An example: easy-VQA"]
COLORS = {"red": (220, 40, 40), "blue": (40, 70, 220), "teal": (0, 150, 150)}
Part = tuple[list[str], list[str], list[int]]  # questions, answers, numbers of images


def stand_in(folder: Path) -> types.ModuleType:
    """Functions and files as the package easy-vqa has them, of one colour a picture."""

    def part(name: str, count: int) -> tuple[Part, dict[int, str]]:
        (folder / name).mkdir(parents=True)
        rows, paths = [], {}
        for number in range(count):
            color = list(COLORS)[number % len(COLORS)]
            paths[number] = str(folder / name / f"{number}.png")
            Image.new("RGB", (64, 64), COLORS[color]).save(paths[number])
            rows.append(("what color is the shape?", color, number))
            rows.append(("is there a red shape?", "yes" if color == "red" else "no", number))
        return tuple(map(list, zip(*rows, strict=True))), paths

    package = types.ModuleType("easy_vqa")
    for name, count in (("train", 40), ("test", 9)):
        questions, paths = part(name, count)
        setattr(package, f"get_{name}_questions", lambda questions=questions: questions)
        setattr(package, f"get_{name}_image_paths", lambda paths=paths: paths)
    return package


def a_part_of(whole: types.ModuleType, images: int) -> types.ModuleType:
    """The package with its first pictures only."""
    package = types.ModuleType("easy_vqa")

    def first(get: Callable[[], Any]) -> Callable[[], Any]:
        def questions() -> Part:
            rows = [row for row in zip(*get(), strict=True) if row[2] < images]
            return tuple(map(list, zip(*rows, strict=True)))

        def paths() -> dict[int, str]:
            return {number: path for number, path in get().items() if number < images}

        return questions if get.__name__.endswith("questions") else paths

    for name in (
        "get_train_questions",
        "get_test_questions",
        "get_train_image_paths",
        "get_test_image_paths",
    ):
        setattr(package, name, first(getattr(whole, name)))
    return package


def follow(package: types.ModuleType, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Do all that the README says; `more` are flags of the training."""
    (code,) = (block.text for block in blocks(SECTION) if block.language == "python")
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    exec(code, {})
    commands = [words_of(command) for command in commands_of(SECTION)]
    assert [Path(words[1]).stem for words in commands] == [
        *["vqa_prepare"] * 3,
        "vqa_finetune",
        *["vqa_test"] * 2,
    ]
    for words in commands:
        script, flags = script_and_flags(words)
        if script == SRC / "tasks" / "vqa_prepare.py":
            assert vqa_prepare.main(flags) == 0
            continue
        trains = words[1] == "run/vqa_finetune.bash"
        assert vqa.cli([*flags, "--no-tqdm", *(["--wandb=off", *more] if trains else [])]) == 0


def test_from_pictures_to_an_answer_by_the_commands_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    follow(stand_in(tmp_path / "package"), monkeypatch)
    printed = capsys.readouterr().out
    assert "what color is the shape?  (test_0 of easy)" in printed
    arguments = json.loads(Path("snap/vqa/easy/args.json").read_text())
    assert (arguments["train"], arguments["valid"], arguments["strategy"]) == ("train", "valid", "standard")
    counts = {s: len(json.loads(Path(f"data/easy/{s}.json").read_text())) for s in ("train", "valid", "test")}
    assert counts == {"train": 72, "valid": 8, "test": 18}
    # A picture under a name that the store does not have is described as those there were.
    best = ["--load=snap/vqa/easy/BEST", "--question=what color is the shape?"]
    shutil.copy("data/easy/photos/test_1.png", "another.png")
    stored = vqa.main(vqa.parse_args([*best, "--image-id=test_1"]))
    new = vqa.main(vqa.parse_args([*best, "--image=another.png"]))
    (of_store,), (of_photo,) = stored["asked"], new["asked"]
    assert of_store.answers == of_photo.answers
    printed = capsys.readouterr().out
    assert "(test_1 of easy)" in printed and "(another, 17 regions found in another.png)" in printed
    assert not list(Path("data/easy").rglob("another*"))


@pytest.mark.slow
def test_a_part_of_easy_vqa_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pytest.importorskip("easy_vqa", reason="needs the package easy-vqa: pip install easy-vqa")
    monkeypatch.chdir(tmp_path)
    follow(a_part_of(whole, 300), monkeypatch)
    result = json.loads(Path("snap/vqa/easy/result.json").read_text())
    records = json.loads(Path("data/easy/valid.json").read_text())
    usual = max(sum(answer in r["label"] for r in records) for answer in ("yes", "no")) / len(records)
    assert result["best"]["val_accuracy"] > 100 * usual + 5
