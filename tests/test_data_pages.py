"""The examples of data/FEATURES.md and data/README.md are read by the readers that they are examples of."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.pages import blocks, sections
from tests.helpers.paths import ROOT
from tests.test_readme import commands_of

from lxmert.sizes import SIZES
from tasks import vqa_prepare
from tasks.prepare.model import RATES
from vqadata.feature_files import KINDS
from vqadata.feature_layout import Layout
from vqadata.features import FeatureStore
from vqadata.folder import DataFolder
from vqadata.own import CSV_FIELDS
from vqadata.questions import prepare_own

FEATURES, README = ROOT / "data" / "FEATURES.md", ROOT / "data" / "README.md"
FORMATS = {
    title: text
    for title, text in sections(FEATURES).items()
    if {"tsv", "python"} & {block.language for block in blocks(text)}
}


def rows_of(title: str) -> Iterator[list[str]]:
    """The cells of the table of a section, without its heading."""
    lines = [line for line in FORMATS[title].splitlines() if line.startswith("|")]
    yield from ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])


def follow(title: str) -> None:
    """Write the example of a section into the working folder, and run its commands."""
    for block in blocks(FORMATS[title]):
        if block.language == "tsv":
            Path(block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(block.text, {})
    for command in commands_of(FORMATS[title]):
        words = shlex.split(command)
        if words[:3] == ["bash", "run/vqa_prepare.bash", "features"]:
            assert vqa_prepare.main([*words[2:], "--quiet"]) == 0


@pytest.mark.parametrize("title", [title for title in FORMATS if "store" not in title])
def test_the_example_of_a_format_is_read_as_the_page_says(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    follow(title)
    (expected,) = (json.loads(block.text) for block in blocks(FORMATS[title]) if block.language == "json")
    (path,) = Path("data/mine/features").iterdir()
    store = FeatureStore(path)
    assert list(store.rows) == list(expected)
    sizes = np.load(path / "image_sizes.npy")
    for image, row in store.rows.items():
        count, values = store.num_regions[row], expected[image]
        assert sizes[row].tolist() == [values["width"], values["height"]]
        np.testing.assert_array_equal(store.boxes[row, :count], np.float32(values["boxes"]))
        np.testing.assert_array_equal(store.features[row, :count], np.float32(values["features"]))


def test_every_format_has_its_section_with_all_of_its_fields() -> None:
    by_count = {6: "six columns", 10: "ten columns", 13: "thirteen columns"}
    assert set(by_count) == set(KINDS)
    for count, words in by_count.items():
        (title,) = (title for title in FORMATS if title.endswith(words))
        named = [cells[1].strip("`") for cells in rows_of(title)]
        assert named == list(KINDS[count])[-len(named) :] and len(named) == (3 if count == 13 else count)
    (title,) = (title for title in FORMATS if ".npz" in title)
    arrays = {name for cells in rows_of(title) for name in re.findall(r"`(\w+)`", cells[0])}
    assert arrays == {"x", "features", "bbox", "boxes", "image_w", "image_h", "num_bbox", "info"}


def test_the_store_is_read_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    follow("LXMERT's .tsv: ten columns")
    (code,) = (b.text for b in blocks(FORMATS["The feature store"]) if b.language == "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["features"].tolist() == [[0.5, 0, 1.25], [2, 0.75, 0]]
    assert names["boxes"].tolist() == [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]]
    files = {
        file for cells in rows_of("The feature store") for file in re.findall(r"`([\w.]+\.\w+)`", cells[0])
    }
    every = Layout(2, 3, image_sizes=True, detections=True).columns()
    assert files == {f"{name}.npy" for name in every} | {"manifest.json", "image_ids.json"}
    assert files == {path.name for path in Path("data/mine/features/lxmert").iterdir()}


# ------------------------------------------------------------------------------------------------ own data


def write_examples(folder: Path, kind: str) -> DataFolder:
    for block in blocks(sections(README)["Your own data"]):
        if block.name and block.language == kind:
            (folder / block.name).write_text(block.text, encoding="utf-8")
    return DataFolder.at(folder)


def test_the_table_of_the_readme_is_read_as_it_says(tmp_path: Path) -> None:
    prepared = prepare_own(write_examples(tmp_path, "csv"))
    one, two = prepared.splits["train"]
    assert (one["img_id"], two["img_id"]) == ("photo_17", "photo_18")
    assert one["label"].keys() == {"red", "pink"} and two["label"] == {"no": 1.0}
    assert two["sent"] == "is it raining, or snowing?"
    text = sections(README)["Your own data"].split("`image` is the photo's file")[1].split("refused")[0]
    named = set(re.findall(r"`(\w+)`", text)) | {"image"}
    assert named == set(CSV_FIELDS) - {"img_id", "sent"}  # which are those of the records


def test_the_official_files_of_the_readme_are_read_as_it_says(tmp_path: Path) -> None:
    prepared = prepare_own(write_examples(tmp_path, "json"))
    one, two = prepared.splits["train"]
    assert (one["img_id"], two["img_id"]) == ("photo_17", "18")
    assert one["label"].keys() == {"red", "pink"} and two["label"] == {"no": 1.0}


def test_the_table_of_sizes_is_that_of_the_source() -> None:
    found = {}
    for line in sections(README)["Photos only"].splitlines():
        if match := re.match(r"\| `(\w+)`", line):
            layers, *numbers = [cell.strip() for cell in line.strip("|").split("|")][1:]
            found[match[1]] = [*map(int, layers.split(", ")), *map(int, numbers[:-1]), float(numbers[-1])]
    fields = ("l_layers", "r_layers", "x_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    assert found == {
        name: [*(asdict(size)[field] for field in fields), RATES[name]] for name, size in SIZES.items()
    }
