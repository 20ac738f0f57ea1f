"""From published files to examples: targets, splits, vocabulary, and the real questions."""

from __future__ import annotations

import gzip
import json
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.paths import LXMERT_LISTS, VQA_SUBSET, needs_shared_data
from tests.helpers.question_files import TRAIN, VAL, answers, cp_test_ids, numbers, write_vqacp, write_vqav2

from common.errors import DataError
from vqadata.answers import build_vocabulary, soft_target
from vqadata.folder import DataFolder, Prepared
from vqadata.official import read_annotations, read_vqacp, read_vqav2, read_vqav2_tests
from vqadata.questions import (
    annotate_lxmert,
    hold_out,
    prepare_lxmert,
    prepare_vqacp,
    prepare_vqav2,
    read_minival_images,
    read_test_ids,
    rebuild_vqacp,
)
from vqadata.records import read_answers

MINIVAL = {f"COCO_val2014_{image:012d}" for image in (501, 502, 507)}


def prepare(folder: Path, **options: Any) -> Prepared:
    options = {"occurrences": 1} | options
    return prepare_vqav2(*read_vqav2(folder), read_vqav2_tests(folder), MINIVAL, **options)


def targets(records: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    return {record["question_id"]: record["label"] for record in records}


# -------------------------------------------------------------------------------------------- vocabulary


def test_soft_targets_count_raw_answers_that_the_vocabulary_holds() -> None:
    given = ["red"] * 4 + ["Red"] * 3 + ["blue"] * 2 + ["green"]
    assert soft_target(given, {"red", "blue", "green"}) == {"red": 1.0, "blue": 0.6, "green": 0.3}
    assert soft_target(given, {"Red"}) == {"Red": 0.9}
    assert soft_target(given, {"pink"}) == {}


def test_vocabulary_counts_different_questions_after_normalisation() -> None:
    pairs = [(1, "Two"), (1, "two"), (2, "2"), (3, "two."), (4, "1,000 men"), (5, "cat"), (6, "cat")]
    assert build_vocabulary(pairs, 3) == ["2"]
    assert build_vocabulary(pairs, 2) == ["2", "cat"]
    assert build_vocabulary(pairs, 1) == ["2", "cat", "1000 men"]


def test_no_comma_is_left_in_the_vocabulary() -> None:
    assert build_vocabulary([(1, "salt,pepper"), (2, ",x"), (3, "1,2"), (4, "a, b")], 1) == [
        "12",
        "b",
        "salt pepper",
        "x",
    ]


# ------------------------------------------------------------------------------------------------ VQA v2


def test_splits_of_vqa_v2(tmp_path: Path) -> None:
    prepared = prepare(write_vqav2(tmp_path, test=True))
    assert {name: len(split) for name, split in prepared.splits.items()} == {
        "train": 24,
        "nominival": 18,
        "minival": 6,
        "test": 1,
    }
    assert {record["img_id"] for record in prepared.splits["minival"]} == MINIVAL
    assert not MINIVAL & {record["img_id"] for record in prepared.splits["nominival"]}
    assert list(prepared.splits)[-1] == "test" and prepared.splits["test"] == [
        {"question_id": 9000, "img_id": "COCO_test2015_000000000900", "sent": "what is number 9000?"}
    ]
    assert prepared.splits["train"][0] == {
        "question_id": 10,
        "img_id": "COCO_train2014_000000000001",
        "sent": "what is number 10?",
        "label": {"yes": 0.9, "no": 0.6, "cat": 0.3},
        "answer_type": "other",
        "question_type": "what is",
    }


@pytest.mark.parametrize("packed", [False, True])
def test_test_dev_is_a_split_about_images_of_test_if_its_file_is_there(tmp_path: Path, packed: bool) -> None:
    folder = write_vqav2(tmp_path, test=True)
    files = [folder / f"v2_OpenEnded_mscoco_{part}2015_questions.json" for part in ("test", "test-dev")]
    files[1].write_text(files[0].read_text())
    if packed:  # both come in one archive
        with zipfile.ZipFile(folder / "v2_Questions_Test_mscoco.zip", "w") as archive:
            for file in files:
                archive.write(file, file.name)
                archive.writestr(f"__MACOSX/{file.name}", "none of it")
                file.unlink()
    splits = prepare(folder).splits
    assert splits["test-dev"] == splits["test"]
    assert splits["test"][0]["img_id"] == "COCO_test2015_000000000900"


def test_an_archive_without_test_dev_has_test_alone(tmp_path: Path) -> None:
    folder = write_vqav2(tmp_path, test=True)
    file = folder / "v2_OpenEnded_mscoco_test2015_questions.json"
    with zipfile.ZipFile(folder / "v2_Questions_Test_mscoco.zip", "w") as archive:
        archive.write(file, file.name)
    file.unlink()
    assert list(read_vqav2_tests(folder)) == ["test"]


@pytest.mark.parametrize("form", ["gz", "zip", "official zip"])
def test_compressed_files_give_the_same(tmp_path: Path, form: str) -> None:
    plain, packed = write_vqav2(tmp_path / "plain"), tmp_path / "packed"
    packed.mkdir()
    archives = {
        "v2_OpenEnded_mscoco_train2014_questions.json": "v2_Questions_Train_mscoco.zip",
        "v2_OpenEnded_mscoco_val2014_questions.json": "v2_Questions_Val_mscoco.zip",
        "v2_mscoco_train2014_annotations.json": "v2_Annotations_Train_mscoco.zip",
        "v2_mscoco_val2014_annotations.json": "v2_Annotations_Val_mscoco.zip",
    }
    for path in plain.iterdir():
        if form == "gz":
            (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        else:
            name = archives[path.name] if form == "official zip" else f"{path.name}.zip"
            with zipfile.ZipFile(packed / name, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(path, f"folder/{path.name}")
    assert prepare(packed) == prepare(plain)


def test_both_sources_give_the_same_training_targets(tmp_path: Path) -> None:
    """LXMERT's files are made here from the raw answers, without any of our functions."""
    prepared = prepare(write_vqav2(tmp_path / "official"))
    folder = write_lxmert(tmp_path / "lxmert", prepared, dict.fromkeys(range(10**4)))
    other = prepare_lxmert(folder)
    assert other.answers == prepared.answers
    for name in ("train", "nominival", "minival"):
        assert targets(other.splits[name]) == targets(prepared.splits[name])
    assert annotate_lxmert(other, tmp_path / "official").annotations == prepared.annotations


def write_lxmert(folder: Path, prepared: Prepared, raw: dict[int, Any]) -> Path:
    """LXMERT's files for the splits of `prepared`, labels counted from `raw` (None: the made-up answers)."""
    score = {1: 0.3, 2: 0.6, 3: 0.9}
    known = set(prepared.answers)
    folder.mkdir()
    for name, records in prepared.splits.items():
        rows = []
        for record in records:
            counts = Counter(raw[record["question_id"]] or answers(record["question_id"]))
            label = {text: score.get(count, 1.0) for text, count in counts.items() if text in known}
            rows.append(record | {"label": label})
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "trainval_label2ans.json").write_text(json.dumps(prepared.answers))
    return folder


def test_lxmerts_label_must_be_in_its_answer_list(tmp_path: Path) -> None:
    prepared = prepare(write_vqav2(tmp_path / "official"))
    folder = write_lxmert(tmp_path / "lxmert", prepared, dict.fromkeys(range(10**4)))
    (folder / "trainval_label2ans.json").write_text('["cat"]')
    with pytest.raises(
        DataError, match=r"train\.json, record 0: label holds 'yes', which is not in the answer"
    ):
        prepare_lxmert(folder)


def test_minival_is_the_first_5000_images_of_a_list_or_all_of_lxmerts(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    path.write_text(json.dumps([f"image {number}" for number in range(5003)]))
    assert read_minival_images(path) == {f"image {number}" for number in range(5000)}
    path.write_text(json.dumps([{"img_id": "b"}, {"img_id": "a"}, {"img_id": "b"}]))
    assert read_minival_images(path) == {"a", "b"}
    path.write_text(json.dumps([42, 139]))
    assert read_minival_images(path) == {"COCO_val2014_000000000042", "COCO_val2014_000000000139"}


@pytest.mark.parametrize("entries", [[1, "a"], [1.0, 2.0], [True], [-1], [], {"a": 1}])
def test_minival_images_that_are_none_are_refused(tmp_path: Path, entries: object) -> None:
    path = tmp_path / "images.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match="neither a list of image ids, which are texts or whole numbers, nor"):
        read_minival_images(path)


def test_minival_images_without_questions_are_refused(tmp_path: Path) -> None:
    parts = read_vqav2(write_vqav2(tmp_path))
    with pytest.raises(DataError, match="None of the 1 minival images has a question in val2014"):
        prepare_vqav2(*parts, {}, {"501"}, occurrences=1)


def test_written_files_are_read_back_unchanged(tmp_path: Path) -> None:
    prepared = prepare(write_vqav2(tmp_path / "from"))
    folder = DataFolder(tmp_path, "to")
    for _ in range(2):  # writing again changes nothing
        assert not folder.write(prepared)
        assert folder.read_splits(["train"])["train"] == prepared.splits["train"]
        assert folder.read_answers() == prepared.answers
        assert read_annotations(folder.ground_truth_file("train")) == prepared.annotations["train"]
        assert not list(folder.path.rglob("*.new"))


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    prepared = prepare(write_vqav2(tmp_path / "from"))
    folder = DataFolder(tmp_path, "to")
    folder.write(prepared)
    before = {path: path.read_bytes() for path in folder.path.rglob("*.json")}

    class Interrupted(list):
        def __iter__(self) -> Any:
            yield {"question_id": 1}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write(prepared._replace(splits={"train": [{}], "minival": Interrupted()}))
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


# --------------------------------------------------------------------------------------------- VQA-CP v2


def test_splits_of_vqa_cp(tmp_path: Path) -> None:
    prepared = prepare_vqacp(*read_vqacp(write_vqacp(tmp_path)), holdout=0.25, occurrences=1)
    ids = {name: {record["question_id"] for record in split} for name, split in prepared.splits.items()}
    assert ids["cp_test"] == cp_test_ids()
    assert ids["cp_train"] | ids["cp_val"] | ids["cp_test"] == {n for n, _ in numbers(TRAIN) + numbers(VAL)}
    train, val = ({r["img_id"] for r in prepared.splits[name]} for name in ("cp_train", "cp_val"))
    assert not train & val
    assert len(val) == 6  # a quarter of 24
    assert any("train2014" in image for image in train) and any("val2014" in image for image in train)


def test_vqa_cp_is_rebuilt_from_vqa_v2_and_test_ids(tmp_path: Path) -> None:
    published = read_vqacp(write_vqacp(tmp_path / "cp"))
    rebuilt = rebuild_vqacp(write_vqav2(tmp_path / "v2"), cp_test_ids())
    for ours, theirs in zip(rebuilt, published, strict=True):
        assert sorted(ours) == sorted(theirs)
    with pytest.raises(DataError, match="1 of 1 test question ids are not in VQA v2's train and val"):
        rebuild_vqacp(tmp_path / "v2", {77777})


@pytest.mark.parametrize("text", ["1\n3\n\n", "[1, 3]", '[{"question_id": 1}, {"question_id": 3}]'])
def test_test_ids_come_as_lines_or_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ids"
    path.write_text(text)
    assert read_test_ids(path) == {1, 3}


def test_a_line_that_is_no_id_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    for wrong in ("2a", "-2", "9" * 5000):
        path.write_text(f"1\n{wrong}\n")
        with pytest.raises(DataError, match=rf"ids\.txt, line 2: '{wrong[:40]}' is not a question id"):
            read_test_ids(path)


def test_held_out_images_depend_on_seed_and_set_only() -> None:
    images = [f"image {number}" for number in range(100)]
    chosen = hold_out(images, 0.05, 3)
    assert len(chosen) == 5
    assert hold_out(images[::-1] * 2, 0.05, 3) == chosen
    assert hold_out(images, 0.05, 4) != chosen
    assert len(hold_out(images, 0.0001, 0)) == 1


# ----------------------------------------------------------------------------------------- the real thing


@pytest.mark.slow
@needs_shared_data
def test_the_real_questions(tmp_path: Path) -> None:
    """57,038 questions: prepared in time, equal from both sources, a vocabulary inside the published one."""
    published = read_answers(LXMERT_LISTS / "trainval_label2ans.json")
    start = time.perf_counter()
    parts = read_vqav2(VQA_SUBSET)
    images = list(dict.fromkeys(pair.question.img_id for pair in parts[1]))[:5000]
    prepared = prepare_vqav2(*parts, {}, set(images), answers=published)
    DataFolder(tmp_path, "out").write(prepared)
    assert time.perf_counter() - start < 15
    assert sum(map(len, prepared.splits.values())) == 57038

    raw = {}
    for image_set in (TRAIN, VAL):
        with gzip.open(VQA_SUBSET / f"v2_mscoco_{image_set}_annotations.json.gz") as file:
            for record in json.load(file)["annotations"]:
                raw[record["question_id"]] = [entry["answer"] for entry in record["answers"]]
    other = prepare_lxmert(write_lxmert(tmp_path / "lxmert", prepared, raw))
    assert other.answers == published
    for name in ("train", "nominival", "minival"):
        assert targets(other.splits[name]) == targets(prepared.splits[name])

    pairs = [(pair.question.question_id, pair.annotation.right) for part in parts for pair in part]
    ours = build_vocabulary(pairs)
    assert 300 < len(ours) < 3129
    assert set(ours) <= set(published)  # fewer questions give fewer answers, none that is new
