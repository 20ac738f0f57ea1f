"""From feature files to stores: round trips, interruptions, and every kind of broken row."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.feature_files import HEIGHT, SIZE, WIDTH, image, line, read_tsv, write_npz, write_tsv

from common.errors import StoreError
from vqadata import feature_files
from vqadata.convert import Options, convert
from vqadata.feature_files import NpzSource, RowFault, TsvSource, parse_row
from vqadata.feature_layout import MANIFEST, Layout, intact_rows, store_checksum
from vqadata.feature_writer import StoreWriter
from vqadata.features import FeatureStore

GOOD = line(image(7))


def store_of(file: Path, path: Path, max_faults: int = 0, **options: object) -> FeatureStore:
    options = Options(**{"regions": 4} | options)
    convert(TsvSource(file), path, options, max_faults=max_faults, progress=False)
    return FeatureStore(path)


def zipped(members: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def fault_of(row: bytes, tmp_path: Path, **options: object) -> str:
    """What is said when `row` follows a good one."""
    file = tmp_path / "bad.tsv"
    file.write_bytes(GOOD + row)
    with pytest.raises(StoreError) as caught:
        store_of(file, tmp_path / "bad", **options)
    assert not (tmp_path / "bad" / MANIFEST).exists()
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_holds_what_an_independent_decoder_reads(tmp_path: Path, dtype: str) -> None:
    write_tsv(tmp_path / "x.tsv", 11)
    store = store_of(tmp_path / "x.tsv", tmp_path / "store", dtype=dtype, detections=True)
    rows = read_tsv(tmp_path / "x.tsv")
    found = {name: np.load(tmp_path / "store" / f"{name}.npy") for name in store.manifest["bytes"] and (
        "object_ids", "object_scores", "attribute_ids", "attribute_scores", "image_sizes")}  # fmt: skip
    assert list(store.rows) == [row["img_id"] for row in rows]
    for index, row in enumerate(rows):
        n = int(row["num_boxes"])
        assert store.num_regions[index] == n
        np.testing.assert_array_equal(store.features[index, :n], row["features"].astype(dtype))
        np.testing.assert_array_equal(
            store.boxes[index, :n], row["boxes"] / np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])
        )
        assert not store.features[index, n:].any() and not store.boxes[index, n:].any()
        assert found["image_sizes"][index].tolist() == [WIDTH, HEIGHT]
        for ours, theirs in (
            ("object_ids", "objects_id"),
            ("object_scores", "objects_conf"),
            ("attribute_ids", "attrs_id"),
            ("attribute_scores", "attrs_conf"),
        ):
            np.testing.assert_array_equal(found[ours][index, :n], row[theirs][:, 0])


def test_the_manifest_tells_source_size_rows_type_and_checksum(tmp_path: Path) -> None:
    write_tsv(tmp_path / "x.tsv", 5)
    manifest = store_of(tmp_path / "x.tsv", tmp_path / "store").manifest
    assert (manifest["source"], manifest["source_size"]) == ("x.tsv", (tmp_path / "x.tsv").stat().st_size)
    assert (manifest["images"], manifest["dtype"], manifest["feature_size"]) == (5, "float16", SIZE)
    assert manifest["checksum"] == store_checksum(tmp_path / "store")
    assert all((tmp_path / "store" / name).stat().st_size == size for name, size in manifest["bytes"].items())


def test_a_flipped_bit_is_found_in_its_row(tmp_path: Path) -> None:
    write_tsv(tmp_path / "x.tsv", 5)
    store = store_of(tmp_path / "x.tsv", tmp_path / "store")
    assert list(intact_rows(store.path, store.manifest)) == [True] * 5
    np.load(store.path / "features.npy", mmap_mode="r+")[3, 0, 0] += 1
    assert list(intact_rows(store.path, store.manifest)) == [True, True, True, False, True]


def test_chunks_and_archives_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tsv(tmp_path / "x.tsv", 30)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "x.tsv", "folder/x.tsv")
    store_of(tmp_path / "x.tsv", tmp_path / "one")
    monkeypatch.setattr("vqadata.convert.CHUNK", 7)
    store_of(tmp_path / "x.tsv", tmp_path / "three")
    store_of(tmp_path / "x.zip", tmp_path / "packed")
    plain, packed = contents(tmp_path / "one"), contents(tmp_path / "packed")
    assert plain == contents(tmp_path / "three")
    assert json.loads(packed.pop(MANIFEST)) == json.loads(plain.pop(MANIFEST)) | {"source": "x.zip"}
    assert packed == plain


def interrupted(file: Path, path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert until `after` rows are there, then as if Ctrl-C were pressed."""
    extend = StoreWriter.extend

    def extend_or_stop(writer: StoreWriter, rows: Sequence[tuple]) -> None:
        extend(writer, rows[: after - len(writer)])
        if len(writer) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "extend", extend_or_stop)
        store_of(file, path)


@pytest.mark.parametrize("after", [0, 1, 13, 29])
@pytest.mark.parametrize("suffix", ["tsv", "zip"])
def test_an_interrupted_conversion_ends_in_the_same_bytes(
    tmp_path: Path, after: int, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tsv(tmp_path / "x.tsv", 30)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "x.tsv", "x.tsv")
    file = tmp_path / f"x.{suffix}"
    store_of(file, tmp_path / "whole")
    interrupted(file, tmp_path / "parts", after, monkeypatch)
    with pytest.raises(StoreError, match="not a finished feature store"):
        FeatureStore(tmp_path / "parts")
    done = convert(TsvSource(file), tmp_path / "parts", Options(regions=4), progress=False)
    assert (done.images, done.resumed_at) == (30, after)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_rows_that_did_not_reach_the_disk_are_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power: a torn journal line, a row of zeros, an array that is too short."""
    write_tsv(tmp_path / "x.tsv", 30)
    store_of(tmp_path / "x.tsv", tmp_path / "whole")
    for number, (name, start, text) in enumerate(
        [
            ("journal.jsonl", -20, b""),
            ("features.npy", -5 * 4 * SIZE * 2, bytes(4 * SIZE * 2)),
            ("row_crc32.npy", -12, b""),
        ]
    ):
        parts = tmp_path / f"parts{number}"
        interrupted(tmp_path / "x.tsv", parts, 20, monkeypatch)
        with (parts / name).open("r+b") as file:
            file.seek(start, os.SEEK_END)
            file.write(text)
            if not text:
                file.truncate()
        done = convert(TsvSource(tmp_path / "x.tsv"), parts, Options(regions=4), progress=False)
        assert done.resumed_at == (19, 15, 17)[number]
        assert contents(parts) == contents(tmp_path / "whole")


def test_a_finished_store_is_left_alone_and_another_source_is_refused(tmp_path: Path) -> None:
    write_tsv(tmp_path / "x.tsv", 5)
    write_tsv(tmp_path / "y.tsv", 6)
    store_of(tmp_path / "x.tsv", tmp_path / "store")
    before = contents(tmp_path / "store")
    assert convert(TsvSource(tmp_path / "x.tsv"), tmp_path / "store", Options(regions=4)).resumed_at == 5
    with pytest.raises(StoreError, match=r"finished store, made from x\.tsv or with other options"):
        store_of(tmp_path / "y.tsv", tmp_path / "store")
    with pytest.raises(StoreError, match="with other options"):
        store_of(tmp_path / "x.tsv", tmp_path / "store", dtype="float32")
    assert contents(tmp_path / "store") == before


def test_an_unfinished_store_is_not_gone_on_with_from_another_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tsv(tmp_path / "x.tsv", 5)
    write_tsv(tmp_path / "y.tsv", 6)
    interrupted(tmp_path / "x.tsv", tmp_path / "store", 3, monkeypatch)
    with pytest.raises(StoreError, match=r"another conversion \(it differs in source, source_size\)"):
        store_of(tmp_path / "y.tsv", tmp_path / "store")


def test_two_processes_cannot_write_one_store(tmp_path: Path) -> None:
    write_tsv(tmp_path / "x.tsv", 5)
    layout = Layout(4, SIZE)
    with StoreWriter(tmp_path / "store", layout, {}), pytest.raises(StoreError, match="Another process"):
        store_of(tmp_path / "x.tsv", tmp_path / "store")


def test_a_full_disk_is_one_sentence_and_the_conversion_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tsv(tmp_path / "x.tsv", 9)
    store_of(tmp_path / "x.tsv", tmp_path / "whole")
    room = [700]  # a row takes 144 bytes, so the second four do not fit

    def write_while_there_is_room(file: int, parts: Sequence[memoryview], offset: int) -> int:
        """A disk that fills up in the middle of a row."""
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = b"".join(parts)[: room[0]]
        room[0] -= len(part)
        return os.pwrite(file, part, offset)

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            StoreError,
            match=r"whose 4 images the same command goes on from\) .* the disk is full",
        ),
    ):
        patch.setattr(os, "pwritev", write_while_there_is_room)
        patch.setattr("vqadata.convert.CHUNK", 4)
        store_of(tmp_path / "x.tsv", tmp_path / "parts")
    assert not (tmp_path / "parts" / MANIFEST).exists()
    store_of(tmp_path / "x.tsv", tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


BAD_ROWS: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut short in a column": (lambda: line(image(1))[:-40], "features .*cut short"),
    "cut short in a number": (
        lambda: line(image(1))[:30],
        "has 3 columns where 10 are expected; the file ends",
    ),
    "a column too many": (lambda: b"x\t" + line(image(1)), "has more than 10 columns"),
    "a column too many at the end": (lambda: line(image(1))[:-1] + b"\tx\n", "has more than 10 columns"),
    "bad base64": (lambda: line(image(1), features="*" * 128), "features is not valid base64"),
    "wrong count": (
        lambda: line(image(1), num_boxes=2),
        "boxes has 48 bytes, which does not fit num_boxes = 2",
    ),
    "no boxes": (lambda: line(image(1), num_boxes=0), "num_boxes is '0'"),
    "no number": (lambda: line(image(1), img_w="wide"), "img_w is 'wide'"),
    "too many boxes": (lambda: line(image(1, 5)), r"5 boxes, and the store has room for 4 \(--max-regions\)"),
    "another size": (
        lambda: line(image(1), features=np.ones((3, 9), np.float32)),
        "9 features a box where the first row has 8",
    ),
    "NaN": (lambda: line(image(1), features=np.full((3, SIZE), np.nan, np.float32)), "features holds NaN"),
    "infinity": (lambda: line(image(1), features=np.full((3, SIZE), -np.inf, np.float32)), "NaN or infinity"),
    "beyond fp16": (
        lambda: line(image(1), features=np.full((3, SIZE), 7e4, np.float32)),
        "70000 is beyond float16",
    ),
    "NaN in a box": (lambda: line(image(1), boxes=np.full((3, 4), np.nan, np.float32)), "boxes holds NaN"),
    "box outside": (
        lambda: line(image(1), boxes=np.float32([[0, 0, WIDTH + 1.5, 9]] * 3)),
        "outside the image of 64 x 48",
    ),
    "box backwards": (lambda: line(image(1), boxes=np.float32([[9, 0, 3, 9]] * 3)), "ends before it starts"),
    "the same image": (lambda: GOOD, "image COCO_val2014_000000000007 was there before"),
    "not UTF-8": (lambda: b"\xff\xfe" + line(image(1)), "img_id is not UTF-8"),
    "no id": (lambda: line(image(1), img_id=""), "img_id is empty"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_broken_row_is_refused_with_file_and_line(kind: str, tmp_path: Path) -> None:
    make, words = BAD_ROWS[kind]
    assert re.match(rf".*bad\.tsv, line 2: .*{words}.*--max-faults", fault_of(make(), tmp_path))


def test_broken_detections_matter_only_if_they_are_wanted(tmp_path: Path) -> None:
    row = line(image(1), objects_id="?", attrs_conf=np.full(3, np.nan, np.float32))
    assert "objects_id is not valid base64" in fault_of(row, tmp_path, detections=True)
    (tmp_path / "x.tsv").write_bytes(row)
    assert len(store_of(tmp_path / "x.tsv", tmp_path / "store").rows) == 1
    other = tmp_path / "other"
    other.mkdir()
    row = line(image(1), attrs_conf=np.full(3, np.nan, np.float32))
    assert "attribute_scores holds NaN" in fault_of(row, other, detections=True)


def test_faulty_rows_are_left_out_with_a_count_up_to_the_limit(tmp_path: Path) -> None:
    bad = line(image(1), num_boxes=2)
    (tmp_path / "x.tsv").write_bytes(bad + GOOD + bad + line(image(8)) + bad)
    with pytest.raises(StoreError, match=r"line 3: .* 1 row was left out before"):
        store_of(tmp_path / "x.tsv", tmp_path / "store", max_faults=1)
    done = convert(
        TsvSource(tmp_path / "x.tsv"), tmp_path / "store", Options(regions=4), max_faults=3, progress=False
    )
    assert (done.images, done.resumed_at, len(done.faults)) == (2, 1, 3)
    assert [fault.split(":")[0][-6:] for fault in done.faults] == ["line 1", "line 3", "line 5"]
    assert FeatureStore(tmp_path / "store").manifest["faults"] == done.faults


def test_a_pixel_outside_is_clipped(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(
        line(image(1), boxes=np.float32([[-1, -0.5, WIDTH + 1, HEIGHT + 0.5]] * 3))
    )
    store = store_of(tmp_path / "x.tsv", tmp_path / "store")
    np.testing.assert_array_equal(store.boxes[0, :3], np.float32([[0, 0, 1, 1]] * 3))


def test_crlf_blank_lines_and_a_missing_last_line_end_make_no_difference(tmp_path: Path) -> None:
    write_tsv(tmp_path / "x.tsv", 5)
    store_of(tmp_path / "x.tsv", tmp_path / "plain")
    text = (tmp_path / "x.tsv").read_bytes()
    (tmp_path / "x.tsv").write_bytes(text.replace(b"\n", b"\r\n\r\n").rstrip())
    store_of(tmp_path / "x.tsv", tmp_path / "odd")
    plain, odd = contents(tmp_path / "plain"), contents(tmp_path / "odd")
    del plain[MANIFEST], odd[MANIFEST]
    assert odd == plain


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "LONGEST_LINE", 2000)
    (tmp_path / "x.tsv").write_bytes(GOOD + b"A" * 9000 + b"\n" + line(image(1)))
    items = list(TsvSource(tmp_path / "x.tsv").items(None))
    assert [len(item.content) for item in items] == [len(GOOD), 2000, len(line(image(1)))]
    assert items[-1].position == ((tmp_path / "x.tsv").stat().st_size, 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.tsv", b"", "is empty"),
        ("x.tsv", b"\n\n", "no rows"),
        ("x.tsv", b"question\tanswer\n", "line 1: has 2 columns .*Is this a feature file"),
        ("x.zip", zipped({}), "holds 0 .tsv files"),
        ("x.zip", zipped({"a.tsv": GOOD, "b.tsv": GOOD}), "holds 2 .tsv files"),
        ("x.zip", zipped({"a.tsv": GOOD}).replace(GOOD, GOOD[::-1]), "damaged after line 0"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=words):
        store_of(tmp_path / name, tmp_path / "store")
    assert not (tmp_path / "store" / MANIFEST).exists()


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.tsv does not exist"):
        TsvSource(tmp_path / "x.tsv")


BYTES = st.binary(max_size=60)


@given(st.lists(st.one_of(BYTES, st.just(GOOD), st.tuples(st.integers(0, len(GOOD)), BYTES).map(
    lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + len(cut[1]) :]))))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_whatever_the_bytes_only_the_projects_error_comes_out(rows: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.tsv")
        file.write_bytes(b"".join(rows))
        try:
            store = store_of(file, Path(folder, "store"), max_faults=2, detections=True)
        except StoreError:
            assert not Path(folder, "store", MANIFEST).exists()
        else:
            assert np.isfinite(store.features).all() and (np.abs(store.boxes - 0.5) <= 0.5).all()


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_one_wrong_byte_is_a_fault_or_a_row_of_the_right_shape(position: int, byte: int) -> None:
    text = bytearray(GOOD)
    text[position] = byte
    try:
        row = parse_row(bytes(text), detections=True)
    except RowFault:
        return
    assert row.features.shape[0] == row.boxes.shape[0] == row.detections["object_ids"].shape[0]


def test_a_folder_of_npz_files_becomes_the_same_store_as_the_tsv(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        write_npz(folder, image(number))
    (tmp_path / "x.tsv").write_bytes(b"".join(line(image(number)) for number in range(6)))
    store_of(tmp_path / "x.tsv", tmp_path / "from tsv")
    convert(NpzSource(folder), tmp_path / "from npz", Options(regions=4), progress=False)
    tsv_files, npz_files = contents(tmp_path / "from tsv"), contents(tmp_path / "from npz")
    del tsv_files[MANIFEST], npz_files[MANIFEST]
    assert npz_files == tsv_files


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"x": np.ones((4, SIZE))}, "4 rows of features and boxes of shape"),
        ({"x": np.array([[None]])}, "not a whole .npz file of plain arrays"),
        ({"image_w": "wide"}, "image_w is not a number"),
        ({"bbox": np.zeros((0, 4))}, "bbox is not a matrix of numbers"),
    ],
)
def test_a_broken_npz_file_is_named(tmp_path: Path, other: dict[str, object], words: str) -> None:
    write_npz(tmp_path, image(0))
    write_npz(tmp_path, image(1), **other)
    with pytest.raises(StoreError, match=f"000000000001.npz: .*{words}"):
        convert(NpzSource(tmp_path), tmp_path / "store", Options(regions=4), progress=False)


def test_a_changed_bit_in_the_directory_of_an_npz_file_is_a_fault_of_its_row(tmp_path: Path) -> None:
    write_npz(tmp_path, image(0))
    source = NpzSource(tmp_path)
    (item,) = source.items(None)
    directory = range(item.content.index(b"PK\1\2"), len(item.content))
    faults = 0
    for place, bit in ((place, bit) for place in directory for bit in range(8)):
        damaged = bytearray(item.content)
        damaged[place] ^= 1 << bit  # one of them says that a member is encrypted
        try:
            source.parse(item._replace(content=bytes(damaged)))  # a changed date is no fault
        except RowFault:
            faults += 1
    assert faults > len(directory)
