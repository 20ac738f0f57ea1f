"""Ten rows of LXMERT's published features, and their photos: from the file to the answer to a question."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.feature_files import read_tsv
from tests.helpers.paths import SHARED

from tasks import vqa, vqa_prepare
from vqadata.features import FeatureStore
from vqadata.folder import DataFolder

ROWS = SHARED / "lxmert_rows"
TSV = ROWS / "train2014_obj36.tsv"
pytestmark = pytest.mark.skipif(
    not TSV.is_file(), reason="needs ten rows of LXMERT's features in ../shared/data/lxmert_rows"
)


def write_questions(folder: Path, images: list[str]) -> None:
    """Two questions an image, as a table; the last two images are for validation."""
    folder.mkdir()
    for split, names in (("train", images[:-2]), ("valid", images[-2:])):
        rows = [
            f"{image},is there a person?,yes\n{image},what is this?,thing {len(image)}" for image in names
        ]
        (folder / f"{split}.csv").write_text("\n".join(["image,question,answer", *rows]) + "\n")


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_store_holds_them_to_the_last_digit_of_its_type(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["features", str(TSV), "--dtype", dtype, "--with-detections", "--quiet"]
    assert vqa_prepare.main(flags) == 0
    store = FeatureStore(Path("data/vqav2/features/train2014"))
    kind = np.dtype({"fp16": np.float16, "fp32": np.float32}[dtype])
    rows = read_tsv(TSV)
    assert list(store.rows) == [row["img_id"] for row in rows] and len(rows) == 10
    assert store.num_regions.tolist() == [36] * 10 and store.features.dtype == kind
    sizes = np.load(store.path / "image_sizes.npy")
    classes = np.load(store.path / "object_ids.npy")
    for number, row in enumerate(rows):
        width, height = int(row["img_w"]), int(row["img_h"])
        with Image.open(ROWS / "images" / f"{row['img_id']}.jpg") as photo:
            assert photo.size == (width, height)
        assert sizes[number].tolist() == [width, height]
        relative = row["boxes"] / np.float32([width, height, width, height])
        np.testing.assert_array_equal(store.boxes[number], relative)
        assert (store.boxes[number] < 1).all()  # they end before the edge
        np.testing.assert_array_equal(store.features[number], row["features"].astype(kind))
        np.testing.assert_array_equal(classes[number], row["objects_id"][:, 0])


def test_features_doctor_training_and_questions_about_a_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vqa_prepare.main(["features", str(TSV), "--dataset", "mine", "--quiet"]) == 0
    images = list(DataFolder(Path("data"), "mine").open_features().stores[0].rows)
    write_questions(Path("questions"), images)
    assert vqa_prepare.main(["own", "--from", "questions", "--name", "mine"]) == 0
    capsys.readouterr()
    assert vqa_prepare.main(["doctor", "data/mine", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "--dataset mine can be trained on." in printed and "10 images, float16" in printed
    assert vqa_prepare.main(["model", "--size", "small", "--from", "data/mine"]) == 0
    assert "reads regions of size 2,048" in capsys.readouterr().out
    trains = ["--dataset=mine", "--pretrained=snap/pretrained/mine", "--fromScratch", "--strategy=standard"]
    assert vqa.cli([*trains, "--lr=1e-3", "--epochs=2", "--batch_size=8", "--wandb=off", "--no-tqdm"]) == 0
    result = json.loads(Path("snap/vqa/run/result.json").read_text())
    assert 0 <= result["val_accuracy"] <= 100
    capsys.readouterr()
    asks = ["--load=snap/vqa/run/BEST", "--question=is there a person?", "--question=what is this?"]
    image = images[-1]
    assert vqa.cli([*asks, f"--image={ROWS / 'images' / f'{image}.jpg'}"]) == 0
    by_photo = capsys.readouterr().out
    assert by_photo.count(f"({image} of mine)") == 2
    assert vqa.cli([*asks, f"--image-id={image}"]) == 0
    assert capsys.readouterr().out == by_photo
