"""What `features` and `check` of vqa_prepare say and return."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.feature_files import image, line

from common.errors import DataError, StoreError
from tasks import vqa_prepare
from tasks.prepare.check import can_train, examine
from tasks.prepare.features import image_set
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder


def run(*argv: object) -> int:
    """The exit code of a sub-command; a mistake is not caught."""
    args = vqa_prepare.build_parser().parse_args([str(word) for word in argv])
    return args.run(args)


def write_images(path: Path, image_ids: list[str]) -> None:
    rows = [(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))] * len(image_ids)
    write_store(path, image_ids, rows, Layout(2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole, small VQA v2: two images in train2014, three in val2014."""
    root = tmp_path / "data" / "vqav2"
    train = [f"COCO_train2014_{number:012d}" for number in range(2)]
    val = [f"COCO_val2014_{number:012d}" for number in range(3)]
    write_images(root / "features" / "train2014", train)
    write_images(root / "features" / "val2014", val)
    for start, (split, images) in enumerate((("train", train), ("nominival", val[:1]), ("minival", val[1:]))):
        records = [
            {"question_id": 10 * start + n, "img_id": image, "sent": "?", "label": {"yes": 1}}
            for n, image in enumerate(images)
        ]
        (root / f"{split}.json").write_text(json.dumps(records))
    (root / "answers.json").write_text('["yes", "no"]')
    return root


def report(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = run("check", "--data", folder.parent, *flags)
    return code, capsys.readouterr().out


def test_a_whole_data_set_can_be_trained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = report(folder, capsys, "--verify")
    assert code == 0
    assert "--dataset vqav2 can be trained on." in text
    assert "train2014: 2 images, float16, checksum" in text and "every row verified" in text
    assert "minival: features of all 2 images" in text
    assert f"missing    {folder / 'test.json'} (not needed for training)" in text


def test_a_split_that_nobody_answered_can_neither_be_trained_on_nor_validated_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "minival.json"
    records = json.loads(file.read_text())
    for record in records:
        del record["label"]
    file.write_text(json.dumps(records))
    (folder / "test.json").write_text(json.dumps([records[0] | {"question_id": 99}]))  # needs no answers
    code, text = report(folder, capsys)
    assert code == 1 and f"faulty     {file}: none of its 2 questions has an answer\n" in text
    assert f"ok         {folder / 'test.json'}" in text and "cannot be trained on yet" in text


def test_nothing_there_names_each_file_and_where_it_can_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = report(tmp_path / "vqav2", capsys)
    assert code == 1
    for name in ("answers.json", "train.json", "nominival.json", "minival.json", "features/<image set>/"):
        assert f"missing    {tmp_path / 'vqav2' / name}" in text
    assert "visualqa.org" in text and "github.com/airsplay/lxmert" in text
    assert "cannot be trained on yet" in text


@pytest.mark.parametrize("name", ["scenes", "scenes-mixed", "scenes-cp-draw3"])
def test_the_embedded_scenes_need_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run("check", "--data", tmp_path, "--dataset", name) == 0
    assert "not there yet, and the first run writes it" in capsys.readouterr().out


def test_a_data_set_of_ones_own_and_one_that_shares_its_features(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = folder.parent / "mine", folder.parent / "other"
    folder.rename(mine)
    assert report(mine, capsys, "--dataset", "mine")[0] == 0
    other.mkdir()
    (other / "features.json").write_text('{"folder": "../mine/features"}')
    for name in ("train.json", "minival.json", "answers.json"):
        shutil.copy(mine / name, other)
    assert report(mine, capsys, "--dataset", "other")[0] == 0
    shutil.rmtree(mine / "features")
    code, text = report(mine, capsys, "--dataset", "other")
    assert code == 1 and f"missing    {mine / 'features'}/<image set>/" in text
    advice = "features <file> --dataset mine` makes it from a .tsv or a folder of .npz"
    assert advice in " ".join(text.split())
    with pytest.raises(DataError, match=r"no data set nope: .* --dataset takes .*, mine, other;"):
        report(mine, capsys, "--dataset", "nope")


def test_vqa_cp_shares_the_features_of_vqa_v2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = report(folder, capsys, "--dataset", "vqacpv2")
    assert code == 1 and "vqav2/features/train2014: 2 images" in text
    other = folder.parent / "vqacpv2"
    other.mkdir()
    shutil.copy(folder / "answers.json", other)
    shutil.copy(folder / "train.json", other / "cp_train.json")
    shutil.copy(folder / "minival.json", other / "cp_val.json")
    assert report(folder, capsys, "--dataset", "vqacpv2")[0] == 0


def test_images_without_features_are_counted_and_traced_to_their_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "features" / "val2014")
    code, text = report(folder, capsys)
    assert code == 1
    assert (
        "minival: 2 of 2 images have no features, the first: COCO_val2014_000000000001, COCO_val2014_0"
        in text
    )
    assert (
        f"{folder / 'features' / 'val2014'}/:" in text and "val2014_obj36.tsv" in text and "16.0 GB" in text
    )


def test_missing_features_of_a_split_that_training_does_not_need_are_no_obstacle(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "test.json").write_text(
        '[{"question_id": 1, "img_id": "COCO_test2015_000000000001", "sent": "?"}]'
    )
    code, text = report(folder, capsys)
    assert code == 0 and "test: 1 of 1 images have no features" in text and "test2015_obj36.tsv" in text


@pytest.mark.parametrize("name", ["answers.json", "minival.json"])
def test_a_damaged_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])
    code, text = report(folder, capsys)
    assert code == 1 and f"damaged    {folder / name}" in text


@pytest.mark.parametrize(
    ("name", "change", "verify", "words"),
    [
        ("boxes.npy", lambda data: data + b"!", False, "has .* bytes and should have"),
        ("boxes.npy", lambda data: data[:-4], False, "has 220 bytes and should have 224"),
        ("row_crc32.npy", lambda data: b"", False, "has 0 bytes and should have"),
        ("row_crc32.npy", lambda data: data[:-1] + b"!", False, "do not match its manifest"),
        ("image_ids.json", lambda data: data.replace(b"0001", b"0007"), False, "do not match its manifest"),
        ("image_ids.json", None, False, "image_ids.json is missing"),
        (
            "features.npy",
            lambda data: data[:-1] + b"!",
            True,
            "1 image does not match .* COCO_val2014_000000000002",
        ),
    ],
)
def test_a_damaged_store_is_found(
    folder: Path, name: str, change: Callable[[bytes], bytes] | None, verify: bool, words: str
) -> None:
    file = folder / "features" / "val2014" / name
    if change:
        file.write_bytes(change(file.read_bytes()))
    else:
        file.unlink()
    findings = list(examine(DataFolder.at(folder), verify=verify))
    damaged = [finding for finding in findings if finding.state == "damaged"]
    assert damaged and not can_train(findings)
    assert re.search(words, damaged[0].what)


def test_two_stores_with_one_image_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(folder / "features" / "zero", ["COCO_val2014_000000000001"])
    code, text = report(folder, capsys)
    assert (
        code == 1 and "Image COCO_val2014_000000000001 is in" in text and "Move one of the two stores" in text
    )


def write_tsv(file: Path, image_ids: list[str], faulty: str = "") -> None:
    """Features of the size that `folder` has, the height of one image no number."""
    rows = [image(0, boxes=2, size=3) | {"img_id": image_id} for image_id in image_ids]
    file.write_bytes(b"".join(line(row, **{"img_h": "-"} if row["img_id"] == faulty else {}) for row in rows))


def test_features_go_where_training_looks_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tsv(tmp_path / "val2014_obj36.tsv", ["a", "b"])
    data = tmp_path / "data"
    for before in ("", ", 2 of them by an earlier run"):
        assert run("features", tmp_path / "val2014_obj36.tsv", "--data", data, "--quiet") == 0
        assert capsys.readouterr().out == f"{data / 'vqav2' / 'features' / 'val2014'}: 2 images{before}\n"


def test_an_unfinished_conversion_is_told_and_left_out_rows_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "test2015_obj36.tsv"
    write_tsv(file, ["a", "b", "c"], faulty="b")
    command = ("features", file, "--data", folder.parent, "--quiet")
    with pytest.raises(StoreError, match=r"test2015_obj36\.tsv, line 2: img_h is '-'"):
        run(*command)
    code, text = report(folder, capsys)
    assert (
        code == 0 and f"unfinished {folder / 'features' / 'test2015'}: its conversion has not ended" in text
    )
    assert run(*command, "--max-faults", "1") == 0
    assert "1 faulty row was left out:\n  " in capsys.readouterr().out
    assert "2 images, float16" in report(folder, capsys)[1]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    write_tsv(tmp_path / "val2014_obj36.tsv", ["a"])
    (tmp_path / "data").write_text("a file, where a folder should be")
    with pytest.raises(StoreError, match=r"data/vqav2.*: Not a directory\."):
        run("features", tmp_path / "val2014_obj36.tsv", "--data", tmp_path / "data", "--quiet")


def test_one_name_for_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--image-set names one store"):
        run("features", tmp_path / "a.tsv", tmp_path / "b.tsv", "--image-set", "c")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("train2014_obj36.tsv", "train2014"),
        ("val2014_obj36.zip", "val2014"),
        ("mine.tsv.zip", "mine"),
        ("images", "images"),
    ],
)
def test_a_store_is_named_after_its_file(file: str, name: str) -> None:
    assert image_set(Path(file)) == name
