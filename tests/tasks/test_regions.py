"""`regions`: a folder of photos to a store that training reads, whatever photos, disks and signals do."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.detector import SMALL, random_state, small_sizes, write_detectron, write_photos

from common.errors import CheckpointError
from common.files import sha256_of
from regions.extract import load_extractor
from tasks import vqa_prepare
from tasks.prepare import regions as command
from vqadata.feature_layout import MANIFEST, intact_rows
from vqadata.feature_writer import JOURNAL, StoreWriter
from vqadata.features import FeatureStore, FeatureStores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/ (four of them) and a small detector's weights; it is the working folder."""
    small_sizes(monkeypatch)
    write_photos(tmp_path / "photos")
    write_detectron(tmp_path / "weights.bin", random_state())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vqadata.convert.PATIENCE", -1.0)  # every row is handed on by itself
    return tmp_path


GRID = ("--extractor", "grid", "--grid", "2")
DETECTOR = ("--weights", "weights.bin")


def regions(*flags: str, dataset: str = "mine", photos: str = "photos") -> int:
    return vqa_prepare.main(["regions", photos, "--dataset", dataset, "--quiet", *flags])


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def store(root: Path, dataset: str = "mine") -> Path:
    return root / "data" / dataset / "features" / "photos"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error


# What the store holds


def test_the_store_holds_what_the_detector_sees_and_finds(root: Path) -> None:
    assert regions(*DETECTOR, "--dtype", "fp32") == 0
    found = FeatureStore(store(root))
    assert list(found.rows) == [f"photo_{number}" for number in range(4)]
    assert found.manifest["detections"] and found.manifest["faults"] == []
    assert all(intact_rows(store(root), found.manifest))
    extractor = load_extractor("detector", root / "weights.bin", "lxmert", 0)
    columns = ("object_ids", "object_scores", "attribute_ids", "attribute_scores", "image_sizes")
    arrays = {name: np.load(store(root) / f"{name}.npy") for name in columns}
    for row, name in enumerate(found.rows):
        seen = extractor.describe(root / "photos" / f"{name}.png")
        np.testing.assert_array_equal(found.features[row], seen.features)
        size = np.float32([seen.width, seen.height] * 2)
        np.testing.assert_array_equal(found.boxes[row], seen.boxes / size)
        np.testing.assert_array_equal(arrays["object_ids"][row], seen.classes)
        np.testing.assert_array_equal(arrays["object_scores"][row], seen.scores)
        np.testing.assert_array_equal(arrays["attribute_ids"][row], seen.attributes)
        np.testing.assert_array_equal(arrays["attribute_scores"][row], seen.attribute_scores)
        assert arrays["image_sizes"][row].tolist() == [90 + 10 * row, 80]


def test_the_manifest_says_what_made_it(root: Path) -> None:
    assert regions(*DETECTOR, "--recipe", "huggingface") == 0
    record = FeatureStore(store(root)).manifest["extractor"]
    assert record == {"kind": "detector", "recipe": "huggingface", "weights": sha256_of(root / "weights.bin")}
    assert regions(*GRID, dataset="other") == 0
    manifest = FeatureStore(store(root, "other")).manifest
    assert manifest["extractor"] == {"kind": "grid", "grid": 2} and not manifest["detections"]
    assert (manifest["regions"], manifest["feature_size"], manifest["images"]) == (5, 108, 4)


def test_names_of_classes_that_lie_beside_the_weights_are_kept(root: Path) -> None:
    (root / "objects_vocab.txt").write_text("".join(f"thing {n}\n" for n in range(SMALL.classes)))
    (root / "attributes_vocab.txt").write_text("".join(f"kind {n}\n" for n in range(SMALL.attributes)))
    assert regions(*DETECTOR) == 0
    manifest = FeatureStore(store(root)).manifest
    assert manifest["object_names"][10] == "thing 10" and manifest["attribute_names"][6] == "kind 6"


def test_training_reads_the_store(root: Path) -> None:
    assert regions(*GRID) == 0
    stores = FeatureStores(root / "data" / "mine" / "features")
    batch = stores.read(stores.locate(["photo_2", "photo_0"]))
    assert batch.features.shape == (2, 5, 108) and batch.mask.all()
    assert batch.boxes[0, 4].tolist() == [0, 0, 1, 1]


def test_the_name_of_a_folder_becomes_that_of_a_store(root: Path) -> None:
    write_photos(root / "My photos (2)", 1)
    assert regions(*GRID, photos="My photos (2)") == 0
    assert regions(*GRID, "--image-set", "others", photos="My photos (2)", dataset="b") == 0
    assert (root / "data/mine/features/My_photos_2_" / MANIFEST).exists()
    assert (root / "data/b/features/others" / MANIFEST).exists()


# Interruptions


def stopped(after: int, monkeypatch: pytest.MonkeyPatch, flags: Sequence[str], dataset: str) -> None:
    """Run until `after` photos are there, then as if Ctrl-C were pressed."""
    extend = StoreWriter.extend

    def extend_or_stop(writer: StoreWriter, rows: Sequence[tuple]) -> None:
        if len(writer) == after:
            raise KeyboardInterrupt
        extend(writer, rows)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "extend", extend_or_stop)
        assert regions(*flags, dataset=dataset) == 130


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("flags", [DETECTOR, GRID], ids=["detector", "grid"])
def test_a_stopped_command_goes_on_to_the_same_bytes(
    root: Path,
    flags: Sequence[str],
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (root / "photos" / "photo_2_.jpg").write_bytes(b"no photo")
    assert regions(*flags, dataset="whole") == 0
    stopped(after, monkeypatch, flags, "parts")
    assert (store(root, "parts") / JOURNAL).exists() and not (store(root, "parts") / MANIFEST).exists()
    capsys.readouterr()
    assert regions(*flags, dataset="parts") == 0
    printed = capsys.readouterr().out
    assert (f"4 photos, {after} of them by an earlier run" in printed) == (after > 0)
    assert contents(store(root, "parts")) == contents(store(root, "whole"))


def test_photos_are_kept_one_by_one_and_not_described_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []
    describe = command.Extractor.describe

    def count(self: command.Extractor, photo: Path) -> object:
        described.append(photo.stem)
        return describe(self, photo)

    monkeypatch.setattr(command.Extractor, "describe", count)
    stopped(2, monkeypatch, GRID, "mine")
    assert regions(*GRID) == 0
    assert described.count("photo_0") == described.count("photo_1") == 1
    assert sorted(set(described)) == [f"photo_{number}" for number in range(4)]
    described.clear()
    assert regions(*GRID) == 0  # a finished store is left as it is
    assert described == []


@pytest.mark.parametrize(
    ("first", "then"),
    [(DETECTOR, GRID), (GRID, (*GRID[:-1], "3")), (DETECTOR, (*DETECTOR, "--recipe", "huggingface"))],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_extractor_does_not_go_on_with_a_store(
    root: Path,
    first: Sequence[str],
    then: Sequence[str],
    finished: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if finished:
        assert regions(*first) == 0
    else:
        stopped(2, monkeypatch, first, "mine")
    before = contents(store(root))
    capsys.readouterr()
    assert regions(*then) == 2
    refused(capsys, "delete the folder" if finished else "Delete the folder")
    assert contents(store(root)) == before


def test_other_weights_and_other_photos_do_not_go_on_with_a_store(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(2, monkeypatch, DETECTOR, "mine")
    write_detectron(root / "weights.bin", random_state(seed=1))
    capsys.readouterr()
    assert regions(*DETECTOR) == 2
    refused(capsys, "it differs in extractor")
    write_detectron(root / "weights.bin", random_state())
    (root / "photos" / "photo_0.png").rename(root / "photos" / "photo_9.png")
    assert regions(*DETECTOR) == 2
    refused(capsys, "it differs in photos")


# Bad photos, folders, weights and disks


def test_bad_photos_are_named_counted_and_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = root / "photos"
    whole = (photos / "photo_3.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("a text")
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    Image.new("RGB", (20_000, 10)).save(photos / "line.png")
    Image.new("RGB", (64, 64)).save(
        photos / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]
    )
    (photos / "notes.txt").write_text("no photo by its ending")
    (photos / "lost.png").symlink_to("none.png")
    assert regions(*GRID) == 0
    printed = capsys.readouterr().out
    assert "4 photos" in printed and "6 photos were left out:" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    for line in (
        "photos/cut.png: is damaged or cut short.",
        "photos/dot.png: has 1 x 1 pixels",
        "photos/line.png: has 20000 x 10 pixels",
        "photos/lost.png: is a link to nothing.",
        "photos/moving.gif: holds 2 pictures",
        "photos/text.jpg: is no JPEG, PNG",
    ):
        assert f"\n  {line}" in printed
    assert len(FeatureStore(store(root)).manifest["faults"]) == 6
    assert regions(*GRID) == 0
    assert "6 photos were left out:" in capsys.readouterr().out  # said again


def test_a_folder_in_which_no_photo_can_be_read_leaves_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "bad").mkdir()
    (root / "bad" / "a.jpg").write_text("a text")
    assert regions(*GRID, photos="bad") == 2
    refused(capsys, "bad has no usable row, the first: bad/a.jpg: is no JPEG")
    assert not (root / "data" / "mine" / "features" / "bad").exists()
    Image.new("RGB", (40, 40)).save(root / "bad" / "a.jpg")
    assert regions(*GRID, photos="bad") == 0


@pytest.mark.parametrize(
    ("photos", "words"),
    [
        ("none", ["none is not a folder of photos"]),
        ("empty", ["There is no photo in empty"]),
        ("same", ["both be image a"]),
    ],
)
def test_bad_folders_are_refused_before_anything_is_written(
    root: Path, photos: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "empty").mkdir()
    (root / "same").mkdir()
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (40, 40)).save(root / "same" / name)
    assert regions(*GRID, photos=photos) == 2
    refused(capsys, *words)
    assert not (root / "data").exists()


def test_names_that_no_store_can_hold_are_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tab\tin.png", os.fsdecode(b"latin\xe9.png")):
        Image.new("RGB", (40, 40)).save(root / "photos" / "x.png")
        (root / "photos" / "x.png").rename(root / "photos" / name)
    assert regions(*GRID) == 0
    assert "2 photos were left out:" in (printed := capsys.readouterr().out)
    assert " ".join(printed.split()).count("its name is empty or has unprintable characters in it") == 2


def test_bad_weights_are_refused_before_anything_is_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "weights.bin").write_bytes(b"PK")
    assert regions(*DETECTOR) == 2
    refused(capsys, "weights.bin is damaged")
    assert regions("--weights", "none.bin") == 2
    refused(capsys, "none.bin does not exist", "262 MB", "--extractor grid")
    assert not (root / "data").exists()


def test_without_weights_the_local_folder_comes_first_and_the_hub_second(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def hub(source: str, files: Sequence[str], one_of: Sequence[str]) -> Path:
        asked.append((source, *one_of))
        raise CheckpointError("The hub cannot be reached.")

    monkeypatch.setattr(command, "local_folder", hub)
    assert regions() == 2
    refused(capsys, "The hub cannot be reached.", "huggingface.co/unc-nlp/frcnn-vg-finetuned", "--weights")
    assert asked == [("unc-nlp/frcnn-vg-finetuned", "pytorch_model.bin")]
    local = root / "snap" / "pretrained" / "frcnn-vg-finetuned"
    local.mkdir(parents=True)
    (root / "weights.bin").rename(local / "pytorch_model.bin")
    assert regions() == 0 and len(asked) == 1
    monkeypatch.setattr(command, "local_folder", lambda *_, **__: local)
    local.rename(local := root / "downloaded")
    assert regions(dataset="b") == regions("--weights", "unc-nlp/frcnn-vg-finetuned", dataset="c") == 0


def test_a_full_disk_is_one_sentence_and_what_is_there_is_gone_on_from(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regions(*GRID, dataset="whole") == 0
    write, left = os.pwritev, [15]

    def until_full(*arguments: object) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", until_full)
        assert regions(*GRID) == 2
    refused(capsys, "the disk is full", "images the same command goes on from")
    assert not (store(root) / MANIFEST).exists()
    assert regions(*GRID) == 0
    assert "of them by an earlier run" in capsys.readouterr().out
    assert contents(store(root)) == contents(store(root, "whole"))


# What it says


def test_the_cost_is_said_before_the_detector_starts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regions(*DETECTOR) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 photos take about ") and "the same command" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert regions(*DETECTOR) == 0
    assert "take about" not in capsys.readouterr().out
    assert regions(*GRID, dataset="other") == 0
    assert "take about" not in capsys.readouterr().out


def test_the_bar_counts_photos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vqa_prepare.main(["regions", "photos", "--dataset", "mine", *GRID]) == 0
    bar = capsys.readouterr().err
    assert "photos: 100%" in bar and "photo/s" in bar


@pytest.mark.parametrize(
    ("count", "device", "cores", "words"),
    [
        (5000, "cpu", 2, "about 17 hours, at some 12 s each on 2 cores"),
        (20, "cpu", 2, "about 4 minutes, at some 12 s each on 2 cores"),
        (3, "cpu", 1, "about 72 seconds, at some 24 s each on 1 core;"),
        (5000, "cuda", 2, "about 8 minutes, at some 0.1 s each on a GPU"),
    ],
)
def test_the_cost_grows_with_photos_and_shrinks_with_cores(
    count: int, device: str, cores: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert words in command.cost(count, device)


def test_a_grid_of_no_cells_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        regions("--extractor", "grid", "--grid", "0")
    assert regions("--extractor", "grid", "--grid", "21") == 2
    assert "a grid has 1 to 20 cells each way, not 21" in capsys.readouterr().err
    assert not (root / "data").exists()


def test_the_journal_of_a_stopped_store_says_what_made_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(1, monkeypatch, GRID, "mine")
    head, *entries = map(json.loads, (store(root) / JOURNAL).read_text().splitlines())
    assert head["extractor"] == {"kind": "grid", "grid": 2}
    assert [entry["image_id"] for entry in entries] == ["photo_0"]
