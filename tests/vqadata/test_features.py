"""Stores of region features: what is written is read, by any process, and nothing damaged passes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.errors import StoreError
from vqadata.feature_layout import Layout
from vqadata.features import FeatureStore, FeatureStores, Regions, write_store

SIZE = 6
Image = tuple[np.ndarray, np.ndarray]


def random_images(counts: Sequence[int], seed: int = 0) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(n, SIZE)).astype(np.float32), rng.random((n, 4)).astype(np.float32)) for n in counts
    ]


def write(path: Path, images: Sequence[Image], prefix: str = "image", **options: object) -> list[str]:
    image_ids = [f"{prefix} {number}" for number in range(len(images))]
    write_store(path, image_ids, iter(images), Layout(**{"regions": 5, "feature_size": SIZE} | options))
    return image_ids


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_batch_is_what_was_written_padded_with_zeros(tmp_path: Path, dtype: str) -> None:
    images = random_images([3, 1, 4, 2])
    image_ids = write(tmp_path / "a", images, dtype=dtype)
    stores = FeatureStores(tmp_path)
    order = [2, 0, 0, 3]
    regions = stores.read(stores.locate(image_ids[number] for number in order))
    assert regions.features.shape == (4, 4, SIZE) and regions.features.dtype == np.float32
    assert regions.mask.sum(1).tolist() == [4, 3, 3, 2]
    for row, number in enumerate(order):
        features, boxes = images[number]
        n = len(features)
        np.testing.assert_array_equal(regions.features[row, :n], features.astype(dtype).astype(np.float32))
        np.testing.assert_array_equal(regions.boxes[row, :n], boxes)
        assert not regions.features[row, n:].any() and not regions.boxes[row, n:].any()
        assert regions.mask[row, :n].all()


def test_stores_of_different_type_and_width_are_read_as_one(tmp_path: Path) -> None:
    first, second = random_images([2, 3], seed=1), random_images([7, 1], seed=2)
    write(tmp_path / "first", first, "first", dtype="float16", regions=3)
    write(tmp_path / "second", second, "second", dtype="float32", regions=7)
    stores = FeatureStores(tmp_path)
    assert (stores.max_regions, stores.feature_size) == (7, SIZE)
    places = stores.locate(["second 0", "first 1", "second 1"])
    assert places.tolist() == [[1, 0], [0, 1], [1, 1]]
    regions = stores.read(places)
    np.testing.assert_array_equal(regions.features[0], second[0][0])
    np.testing.assert_array_equal(regions.features[1, :3], first[1][0].astype(np.float16))
    assert regions.mask.sum(1).tolist() == [7, 3, 1]


def test_unknown_images_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", random_images([1]))
    stores = FeatureStores(tmp_path)
    assert "image 0" in stores and "image 1" not in stores
    with pytest.raises(KeyError):
        stores.locate(["image 1"])


def test_an_image_in_two_stores_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", random_images([1]))
    write(tmp_path / "b", random_images([1]))
    with pytest.raises(StoreError, match=r"Image image 0 is in .*a and in .*b"):
        FeatureStores(tmp_path)


def test_stores_of_different_feature_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", random_images([1]))
    write_store(
        tmp_path / "b",
        ["x"],
        [(np.ones((1, 9), np.float32), np.ones((1, 4), np.float32))],
        Layout(1, 9),
    )
    with pytest.raises(StoreError, match=r"differ in feature size: \[6, 9\]"):
        FeatureStores(tmp_path)


def test_writing_again_replaces_the_store(tmp_path: Path) -> None:
    write(tmp_path / "a", random_images([3, 2, 1]))
    write(tmp_path / "a", random_images([4], seed=5))
    store = FeatureStore(tmp_path / "a")
    assert list(store.rows) == ["image 0"] and store.features.shape == (1, 5, SIZE)


@pytest.mark.parametrize(
    ("counts", "image_ids", "words"),
    [
        ([1, 6], ["a", "b"], "Image b has 6 regions; this store holds 1 to 5"),
        ([1, 0], ["a", "b"], "Image b has 0 regions"),
        ([1], ["a", "b"], "2 different images were announced and 1 came"),
        ([1, 1, 1], ["a", "b"], "2 images were announced and more came"),
        ([1, 1], ["a", "a"], "2 different images were announced and 1 came"),
    ],
)
def test_rows_that_cannot_be_written_leave_no_store(
    tmp_path: Path, counts: list[int], image_ids: list[str], words: str
) -> None:
    write(tmp_path, random_images([1]))
    with pytest.raises(StoreError, match=words):
        write_store(tmp_path, image_ids, random_images(counts), Layout(5, SIZE))
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        FeatureStore(tmp_path)


def damage(path: Path, how: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    if how == "cut short":
        (path / "features.npy").write_bytes((path / "features.npy").read_bytes()[:-1])
    elif how == "empty":
        (path / "boxes.npy").write_bytes(b"")
    elif how == "no list":
        (path / "image_ids.json").write_text('["a"')
    elif how == "other length":
        (path / "image_ids.json").write_text('["a"]')
    elif how == "other format":
        (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    else:
        (path / how).unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut short", r"features\.npy has 247 bytes and should have 248"),
        ("empty", r"boxes\.npy has 0 bytes and should have 288"),
        ("no list", r"image_ids\.json has 4 bytes"),
        ("other length", r"image_ids\.json has 5 bytes"),
        ("other format", "is of format 99; this code reads 1"),
        ("features.npy", r"features\.npy is missing"),
        ("image_ids.json", r"image_ids\.json is missing"),
    ],
)
def test_a_damaged_store_is_refused_in_one_sentence(tmp_path: Path, how: str, words: str) -> None:
    write(tmp_path, random_images([2, 3]))
    damage(tmp_path, how)
    with pytest.raises(StoreError, match=words):
        FeatureStore(tmp_path)


def test_no_store_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature store below"):
        FeatureStores(tmp_path)


def test_a_file_cut_short_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a", random_images([2, 5]))
    stores = FeatureStores(tmp_path)
    with (tmp_path / "a" / "features.npy").open("r+b") as file:
        file.truncate(150)
    with pytest.raises(StoreError, match="cannot be read at row 1"):
        stores.read(stores.locate(["image 1"]))


def flip(file: Path, place: int) -> None:
    """Change one bit; `place` counts from the end if it is negative."""
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def read_all(folder: Path) -> tuple[str, Regions]:
    stores = FeatureStores(folder)
    image_ids = [image_id for store in stores.stores for image_id in store.rows]
    return stores.digest(image_ids), stores.read(stores.locate(image_ids))


def test_any_flipped_bit_of_a_store_is_named_or_changes_nothing(tmp_path: Path) -> None:
    """Every byte of every file, headers too; what is padding, or only tells the source, may change unseen."""
    write(tmp_path / "a", random_images([2, 5]))
    digest, whole = read_all(tmp_path)
    seen: dict[str, int] = {}
    for file in sorted((tmp_path / "a").iterdir()):
        content = file.read_bytes()
        for place in range(len(content)):
            flip(file, place)
            try:
                found = read_all(tmp_path)
                assert found[0] == digest and all(map(np.array_equal, found[1], whole)), (file.name, place)
            except StoreError as error:
                assert str(tmp_path) in str(error)
                seen[file.name] = seen.get(file.name, 0) + 1
            file.write_bytes(content)
    assert seen.keys() == {path.name for path in (tmp_path / "a").iterdir()}
    assert seen["image_ids.json"] == 22  # all of it


def test_a_damaged_row_is_named_by_store_and_image_and_hinders_no_other(tmp_path: Path) -> None:
    image_ids = write(tmp_path / "a", random_images([2, 5]))
    flip(tmp_path / "a" / "features.npy", -1)
    stores = FeatureStores(tmp_path)
    assert stores.read(stores.locate(image_ids[:1])).mask.sum() == 2
    with pytest.raises(StoreError, match=rf"{tmp_path}/a is damaged: .* of image image 1 do not match"):
        stores.read(stores.locate(image_ids))


def test_an_unreadable_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_ids = write(tmp_path / "a", random_images([2]))
    stores = FeatureStores(tmp_path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StoreError, match=r"/a cannot be read: Input/output error"):
        stores.read(stores.locate(image_ids))


def test_the_digest_depends_on_the_images_asked_for_and_not_on_how_they_are_stored(tmp_path: Path) -> None:
    images = random_images([2, 5, 3])
    image_ids = write(tmp_path / "one" / "a", images)
    layout = Layout(5, SIZE)
    two = tmp_path / "two"
    write_store(two / "b", [image_ids[2]], images[2:], layout)
    write_store(two / "c", [image_ids[1], image_ids[0], "other"], [images[1], images[0], images[2]], layout)
    first, second = FeatureStores(tmp_path / "one"), FeatureStores(two)
    assert first.digest(image_ids) == second.digest([*reversed(image_ids), image_ids[0]])
    assert first.digest(image_ids[:2]) == second.digest(image_ids[:2]) != first.digest(image_ids)
    with pytest.raises(KeyError):
        first.digest(["other"])


@pytest.mark.parametrize("what", ["value", "box", "region count", "exchanged ids"])
def test_the_digest_is_another_if_anything_about_an_image_changes(tmp_path: Path, what: str) -> None:
    images = random_images([2, 5])
    image_ids = write(tmp_path / "before" / "a", images)
    features, boxes = (array.copy() for array in images[0])
    if what == "value":
        features[0, 0] += 1
    elif what == "box":
        boxes[1, 2] /= 2
    elif what == "region count":  # as if a region of zeros were one
        features, boxes = (np.concatenate([array, 0 * array[:1]]) for array in (features, boxes))
    changed = [(features, boxes), images[1]]
    write(tmp_path / "after" / "a", changed[::-1] if what == "exchanged ids" else changed)
    before, after = (FeatureStores(tmp_path / name).digest(image_ids) for name in ("before", "after"))
    assert before != after


def read_sum(stores: FeatureStores, image_ids: list[str], results: multiprocessing.Queue) -> None:
    results.put(float(stores.read(stores.locate(image_ids)).features.sum(dtype=np.float64)))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_read_the_same_and_at_the_same_time(tmp_path: Path, method: str) -> None:
    image_ids = write(tmp_path / "a", random_images([5] * 40))
    stores = FeatureStores(tmp_path)
    expected = float(stores.read(stores.locate(image_ids)).features.sum(dtype=np.float64))
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=read_sum, args=(stores, image_ids, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [expected, expected]
    for worker in workers:
        worker.join()


def test_a_store_travels_to_another_process_as_its_path(tmp_path: Path) -> None:
    write_store(
        tmp_path / "a",
        ["x"],
        [(np.ones((4, 20_000), np.float32), np.ones((4, 4), np.float32))],
        Layout(4, 20_000),
    )
    assert len(pickle.dumps(FeatureStores(tmp_path))) < 2000


def test_reading_all_of_a_store_does_not_make_the_process_grow(tmp_path: Path) -> None:
    count, size = 400, 16 * 2048
    images = (
        (np.full((4, size), number, np.float32), np.ones((4, 4), np.float32)) for number in range(count)
    )
    image_ids = [str(number) for number in range(count)]
    write_store(tmp_path / "a", image_ids, images, Layout(4, size))  # 105 MB
    stores = FeatureStores(tmp_path)
    places = stores.locate(image_ids)
    stores.read(places[:8])
    before = psutil.Process().memory_info().rss
    for start in range(0, count, 8):
        stores.read(places[start : start + 8])
    assert psutil.Process().memory_info().rss - before < 30e6
