"""Formats of features beside LXMERT's: six and thirteen columns, more of .npz, and what only looks right."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.feature_files import (
    HEIGHT,
    SIZE,
    WIDTH,
    encode,
    image,
    line,
    six_columns,
    write_npz,
    write_tsv,
)

from common.errors import StoreError
from tasks import vqa_prepare
from tasks.finetune.data import choose_dataset
from vqadata.convert import Options, convert
from vqadata.feature_files import NpzSource, TsvSource
from vqadata.feature_layout import MANIFEST, Layout
from vqadata.features import FeatureStore, FeatureStores, write_store
from vqadata.folder import DataFolder

BOXES = np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])


def store_of(source: TsvSource | NpzSource, path: Path, **options: Any) -> FeatureStore:
    convert(source, path, Options(**{"regions": 4, "dtype": "float32"} | options), progress=False)
    return FeatureStore(path)


def same_rows(one: FeatureStore, other: FeatureStore) -> None:
    """Equal features, boxes, numbers of regions and sizes, in one order."""
    for name in ("features", "boxes", "num_regions", "image_sizes"):
        ours, theirs = (np.load(store.path / f"{name}.npy") for store in (one, other))
        np.testing.assert_array_equal(ours, theirs)


# ------------------------------------------------------------------------------------------------ columns


def test_what_follows_the_tenth_of_thirteen_columns_is_not_read(tmp_path: Path) -> None:
    images = write_tsv(tmp_path / "ten.tsv", 7)
    rest = "\t".join([encode(np.ones(9, np.float32)), "!", ""]).encode()
    rows = (line(values)[:-1] + b"\t" + rest + b"\n" for values in images)
    (tmp_path / "thirteen.tsv").write_bytes(b"".join(rows))
    ten, thirteen = (
        store_of(TsvSource(tmp_path / f"{name}.tsv"), tmp_path / name, detections=True)
        for name in ("ten", "thirteen")
    )
    same_rows(ten, thirteen)
    assert list(ten.rows) == list(thirteen.rows)


def test_six_columns_have_the_width_before_the_height_and_numbers_in_the_place_of_names(
    tmp_path: Path,
) -> None:
    images = write_tsv(tmp_path / "ten.tsv", 5)
    rows = (six_columns(values, number) for number, values in enumerate(images))
    (tmp_path / "six.tsv").write_bytes(b"".join(rows))
    source = TsvSource(tmp_path / "six.tsv", lambda number: f"COCO_val2014_{number:012d}")
    assert source.numbers_images and not TsvSource(tmp_path / "ten.tsv").numbers_images
    six, ten = (
        store_of(s, tmp_path / f"store {n}") for n, s in enumerate((source, TsvSource(tmp_path / "ten.tsv")))
    )
    same_rows(six, ten)
    # 0 is no number of an image: it stays as it is.
    assert list(six.rows) == ["0", *list(ten.rows)[1:]]
    sizes = np.load(six.path / "image_sizes.npy")
    assert sizes.tolist() == [[WIDTH, HEIGHT]] * 5


def test_detections_are_not_in_six_columns(tmp_path: Path) -> None:
    (tmp_path / "six.tsv").write_bytes(six_columns(image(1), 1))
    with pytest.raises(StoreError, match="only six columns: leave out --with-detections"):
        store_of(TsvSource(tmp_path / "six.tsv"), tmp_path / "store", detections=True)


def test_a_row_of_another_kind_than_the_first_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(six_columns(image(1), 1) + line(image(2)))
    with pytest.raises(StoreError, match=r"x\.tsv, line 2: has more than 6 columns"):
        store_of(TsvSource(tmp_path / "x.tsv"), tmp_path / "one")
    (tmp_path / "x.tsv").write_bytes(line(image(1)) + six_columns(image(2), 2))
    with pytest.raises(StoreError, match=r"line 2: has 6 columns where 10 are expected"):
        store_of(TsvSource(tmp_path / "x.tsv"), tmp_path / "two")


# ---------------------------------------------------------------------------- six columns and the questions


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_questions(folder: Path, **images: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, names in images.items():
        records = []
        for name in names:
            records.append({"question_id": number, "img_id": name, "sent": "is it?", "label": {"yes": 1}})
            number += 1
        (folder / f"{split}.json").write_text(json.dumps(records))


def features(*flags: str) -> int:
    return vqa_prepare.main(["features", *flags, "--quiet", "--dtype", "fp32"])


def test_numbers_become_the_names_that_questions_use_and_one_file_may_hold_train_and_val(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "trainval_36.tsv").write_bytes(b"".join(six_columns(image(n), n) for n in (3, 4, 5, 6)))
    assert features("trainval_36.tsv", "--image-set", "trainval") == 2
    assert "the questions of --dataset vqav2 say which set of COCO's each is in" in capsys.readouterr().err
    train, val = "COCO_train2014_000000000005", "COCO_val2014_000000000003"
    # A question may be in test and in its part, test-dev.
    write_questions(here / "data/vqav2", train=[train], minival=[val])
    for split in ("test", "test-dev"):
        write_questions(here / "data/vqav2", **{split: ["COCO_test2015_000000000099"]})
    capsys.readouterr()
    assert features("trainval_36.tsv", "--image-set", "trainval") == 0
    printed = capsys.readouterr().out
    assert (
        "2 images\n" in printed
        and "2 images that no question of data/vqav2 is about were left out" in printed
    )
    stores = DataFolder(Path("data"), "vqav2").open_features()
    assert list(stores.stores[0].rows) == [val, train]
    regions = stores.read(stores.locate([train]))
    np.testing.assert_array_equal(regions.features[0], image(5)["features"])


@pytest.mark.parametrize(
    ("file", "store"),
    [
        ("test2015_resnet101_faster_rcnn_genome_36.tsv", "test2015"),
        ("val2014_resnet101_faster_rcnn_genome.tsv", "val2014"),
    ],
)
def test_a_file_of_one_set_needs_no_questions(here: Path, file: str, store: str) -> None:
    (here / file).write_bytes(six_columns(image(1), 7))
    assert features(file) == 0
    assert list(FeatureStore(here / "data/vqav2/features" / store).rows) == [f"COCO_{store}_000000000007"]


def test_numbers_stay_where_questions_of_ones_own_have_no_names(here: Path) -> None:
    (here / "x.tsv").write_bytes(six_columns(image(1), 7))
    write_questions(here / "data/mine", train=["7"])
    assert features("x.tsv", "--dataset", "mine") == 0
    assert list(FeatureStore(here / "data/mine/features/x").rows) == ["7"]


def test_a_file_about_none_of_the_images_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "trainval.tsv").write_bytes(six_columns(image(1), 7))
    write_questions(here / "data/vqav2", train=["COCO_train2014_000000000005"])
    assert features("trainval.tsv") == 2
    assert "trainval.tsv has 1 images, and no question is about any of them." in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- .npz


def test_rows_after_num_bbox_are_padding_and_matrices_may_be_turned(tmp_path: Path) -> None:
    values = image(1, boxes=3)
    wide, tall = values["features"], np.ascontiguousarray(values["features"].T)
    padded = {"x": np.pad(wide, ((0, 2), (0, 0))), "bbox": np.pad(values["boxes"], ((0, 2), (0, 0)))}
    for name, other in {
        "plain": {},
        "padded": padded | {"num_bbox": 3},
        "turned": {"x": tall, "num_bbox": np.array(3)},
        "pictured": {"info": np.array({"objects_id": [1]}, dtype=object)},
    }.items():
        (tmp_path / name).mkdir()
        write_npz(tmp_path / name, values, **other)
    (tmp_path / "pictured" / f"{values['img_id']}.npz").rename(tmp_path / "pictured" / "a b.JPG.npz")
    plain, *others = (
        store_of(NpzSource(tmp_path / name), tmp_path / f"{name} store", regions=3)
        for name in ("plain", "padded", "turned", "pictured")
    )
    for other in others:
        same_rows(plain, other)
    assert list(others[-1].rows) == ["a b"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"num_bbox": 4}, "num_bbox is 4, and there are 3 rows of features"),
        ({"num_bbox": 3, "bbox": image(1)["boxes"][:2]}, r"3 rows of features and boxes of shape \(2, 4\)"),
        ({"num_bbox": 0}, "num_bbox is not a number from 1"),
        ({"num_bbox": "three"}, "num_bbox is not a number from 1"),
    ],
)
def test_a_number_of_boxes_that_cannot_be_is_named(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    write_npz(tmp_path, image(1), **other)
    with pytest.raises(StoreError, match=words):
        store_of(NpzSource(tmp_path), tmp_path / "store")


class Touch:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_beside_the_arrays_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    write_npz(tmp_path / "features", image(1), info=np.array(Touch(tmp_path / "run"), dtype=object))
    store_of(NpzSource(tmp_path / "features"), tmp_path / "store")
    assert not (tmp_path / "run").exists()
    write_npz(tmp_path / "features", image(2), num_bbox=np.array(Touch(tmp_path / "run"), dtype=object))
    with pytest.raises(StoreError, match=r"not a whole \.npz file of plain arrays"):
        store_of(NpzSource(tmp_path / "features"), tmp_path / "other")
    assert not (tmp_path / "run").exists()


def test_mmfs_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", image(1)["features"])
    np.save(tmp_path / "1_info.npy", np.array({"bbox": image(1)["boxes"]}, dtype=object))
    for make, path in ((NpzSource, tmp_path), (TsvSource, tmp_path / "1.npy")):
        with pytest.raises(
            StoreError, match=r"MMF's features: .*pickles.* are refused; write x, bbox, image_w"
        ):
            make(path)


# -------------------------------------------------------------------------------------------------- boxes


def test_boxes_that_are_divided_already_are_named_and_taken_on_request(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = image(1)
    (here / "pixels.tsv").write_bytes(line(values))
    (here / "relative.tsv").write_bytes(line(values, boxes=values["boxes"] / BOXES))
    assert features("relative.tsv", "--dataset", "mine") == 2
    error = capsys.readouterr().err
    assert "line 1: its boxes lie between 0 and 1 in an image of 64 x 48 pixels" in error
    assert "--boxes relative takes them as they are" in error and len(error.splitlines()) == 1
    assert features("relative.tsv", "--dataset", "mine", "--boxes", "relative") == 0
    assert features("pixels.tsv", "--dataset", "other") == 0
    one, other = (here / "data" / path for path in ("mine/features/relative", "other/features/pixels"))
    same_rows(FeatureStore(one), FeatureStore(other))
    # The two readings of one file are two stores.
    assert features("relative.tsv", "--dataset", "mine", "--boxes", "relative") == 0
    assert features("relative.tsv", "--dataset", "mine") == 2
    assert "or with other options" in capsys.readouterr().err


def test_pixels_are_not_taken_for_shares(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "x.tsv").write_bytes(line(image(1)))
    assert features("x.tsv", "--boxes", "relative") == 2
    assert "a box reaches outside the image" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1)])
def test_in_an_image_of_a_pixel_or_two_a_box_of_one_pixel_is_none_of_them(
    tmp_path: Path, width: int, height: int
) -> None:
    row = line(image(1, 1), img_w=width, img_h=height, boxes=np.float32([[0, 0, 1, 1]]))
    (tmp_path / "x.tsv").write_bytes(row)
    store = store_of(TsvSource(tmp_path / "x.tsv"), tmp_path / "store")
    assert store.boxes[0, 0].tolist() == [0, 0, 1 / width, 1 / height]


# ----------------------------------------------------------------------------- hidden files, one form of ids


def test_hidden_files_and_those_of_macs_are_left_out_everywhere(tmp_path: Path) -> None:
    write_npz(tmp_path, image(1))
    for name in ("._COCO_val2014_000000000001.npz", ".x.npz"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert len(list(NpzSource(tmp_path).items(None))) == 1
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x.tsv", line(image(1)))
        archive.writestr("__MACOSX/._x.tsv", "no rows")
        archive.writestr("__MACOSX/x.tsv", "no rows")
    mine = DataFolder(tmp_path / "data", "mine")
    store_of(TsvSource(tmp_path / "x.zip"), mine.own_features / "x")
    for name in ("__MACOSX", ".Trash"):
        (mine.own_features / name).mkdir()
        (mine.own_features / name / MANIFEST).write_text("none")
    for name in (".train.json", "._train.json", "train.json"):
        (mine.path / name).write_text("[]")
    assert mine.splits() == ["train"]
    assert [store.path.name for store in mine.open_features().stores] == ["x"]
    assert len(mine.manifests()) == 1


def test_what_a_mac_leaves_in_an_empty_folder_is_no_data_set(here: Path) -> None:
    (here / "data/vqav2/features").mkdir(parents=True)
    for name in ("._train.json", "features/.DS_Store"):
        (here / "data/vqav2" / name).write_text("")
    assert choose_dataset(Path("data")) == "scenes"
    (here / "data/vqav2/features/train2014").mkdir()
    assert choose_dataset(Path("data")) == "vqav2"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", ["tsv", "npz"])
def test_an_accent_is_one_letter_however_a_system_writes_it(here: Path, form: str, kind: str) -> None:
    name, other = (unicodedata.normalize(f, "caf\u00e9") for f in (form, {"NFC": "NFD", "NFD": "NFC"}[form]))
    assert name != other
    values = image(1) | {"img_id": name}
    if kind == "tsv":
        (here / "mine.tsv").write_bytes(line(values))
    else:
        (here / "mine").mkdir()
        write_npz(here / "mine", values)
    assert features("mine.tsv" if kind == "tsv" else "mine", "--dataset", "mine") == 0
    write_questions(here / "data/mine", train=[other], valid=[other])
    records = DataFolder(Path("data"), "mine").read_splits(["train"])["train"]
    stores = FeatureStores(here / "data/mine/features")
    assert records[0]["img_id"] in stores
    assert stores.digest([records[0]["img_id"]]) == stores.digest(["caf\u00e9"])
    assert json.loads((here / "data/mine/features/mine/image_ids.json").read_text()) == ["caf\u00e9"]


def test_a_store_that_has_a_name_in_another_form_is_read_by_the_usual_one(tmp_path: Path) -> None:
    rows = [(np.ones((1, SIZE), np.float32), np.ones((1, 4), np.float32))]
    write_store(tmp_path / "store", ["cafe\u0301"], rows, Layout(1, SIZE))
    assert "caf\u00e9" in FeatureStores(tmp_path)
