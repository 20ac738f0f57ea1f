"""Each file format, written and read back; files of other networks, damaged ones, and traps."""

from __future__ import annotations

import collections
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.detector import (
    SMALL,
    random_state,
    small_sizes,
    write_detectron,
    write_original,
    write_pickle,
)

from common.errors import CheckpointError
from regions.network import Sizes
from regions.weights import find_file, load_detector, read_names

STATE = random_state()
WRITERS = {
    "pytorch_model.bin": write_detectron,
    "frcnn.pkl": write_pickle,
    "bua-caffe-frcn-r101.pth": write_original,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes(monkeypatch)


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_detector(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_is_read_into_the_same_detector(tmp_path: Path, name: str) -> None:
    detector = load_detector(WRITERS[name](tmp_path / name, STATE))
    found = detector.state_dict()
    assert found.keys() == STATE.keys() and not detector.training
    for key, expected in STATE.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-5, msg=key)
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in found.values())


@pytest.mark.parametrize("name", WRITERS)
def test_formats_differ_in_nothing_that_the_detector_says(tmp_path: Path, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image, pooled = (
        torch.randn(1, 3, 64, 96, generator=generator),
        torch.rand(4, 32, 14, 14, generator=generator),
    )
    ours = load_detector(write_detectron(tmp_path / "ours.bin", STATE))
    theirs = load_detector(WRITERS[name](tmp_path / name, STATE))
    maps = ours.feature_map(image)
    for a, b in zip(ours.proposals(maps), theirs.proposals(maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.predict(pooled), theirs.predict(pooled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    detector = load_detector(write_pickle(tmp_path / "a.pkl", STATE, protocol))
    assert torch.equal(
        detector.state_dict()["backbone.stem.conv1.weight"], STATE["backbone.stem.conv1.weight"]
    )


def test_a_state_without_a_frame_and_with_numbers_of_half_precision_is_read(tmp_path: Path) -> None:
    torch.save(
        collections.OrderedDict((name, tensor.half()) for name, tensor in STATE.items()), tmp_path / "a.pth"
    )
    found = load_detector(tmp_path / "a.pth").state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


# Other networks


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    name = "roi_heads.res5.0.conv1.weight"
    file = write_detectron(tmp_path / "a.bin", {key: tensor for key, tensor in STATE.items() if key != name})
    assert f"missing {name}; unexpected none" in refusal(file)
    write_detectron(file, {**STATE, "roi_heads.mask.weight": torch.ones(2)})
    assert "missing none; unexpected roi_heads.mask.weight" in refusal(file)
    write_detectron(file, {**STATE, name: torch.ones(3, 4)})
    assert f"{name} is (3, 4), not (16, 32, 1, 1)" in refusal(file)


@pytest.mark.parametrize("write", [write_detectron, write_original, write_pickle])
@pytest.mark.parametrize("other", [SMALL._replace(blocks=(1, 2, 3, 1)), SMALL._replace(classes=12)])
def test_another_detectors_weights_are_refused_in_every_format(
    tmp_path: Path, write: Any, other: Sizes
) -> None:
    file = tmp_path / f"a.{'pkl' if write is write_pickle else 'pth'}"
    assert "does not fit the detector" in refusal(write(file, random_state(other)))


def test_rows_of_the_originals_boxes_do_not_fit_under_other_names(tmp_path: Path) -> None:
    name = "roi_heads.box_predictor.bbox_pred.weight"
    more = torch.cat([torch.zeros(4, 64), STATE[name]])
    assert "bbox_pred.weight is (48, 64), not (44, 64)" in refusal(
        write_detectron(tmp_path / "a.bin", {**STATE, name: more})
    )


# Damage, and what cannot be trusted


@pytest.mark.parametrize("name", ["a.bin", "a.pth", "a.pt", "a.pkl"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_and_does_not(
    tmp_path: Path, name: str, protocol: int
) -> None:
    trap, file = tmp_path / "trap", tmp_path / name
    content = pickle.dumps({"model": {"a": np.ones(3, np.float32), "b": TouchesAFile(trap)}}, protocol)
    file.write_bytes(content)
    assert "refused" in (said := refusal(file)) or "nothing in it was run" in said
    assert not trap.exists()
    pickle.loads(content)
    assert trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path, zipped: bool) -> None:
    trap, file = tmp_path / "trap", tmp_path / "a.pth"
    torch.save({"model": {"a": TouchesAFile(trap)}}, file, _use_new_zipfile_serialization=zipped)
    assert "was refused: it holds more than tensors" in refusal(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize(
    "call", [("builtins", "eval"), ("os", "system"), ("numpy", "load"), ("numpy.core.multiarray", "fromfile")]
)
def test_only_arrays_come_out_of_a_pickle(tmp_path: Path, call: tuple[str, str]) -> None:
    (tmp_path / "a.pkl").write_bytes(f"c{call[0]}\n{call[1]}\n(S'1'\ntR.".encode())
    assert "was refused: it holds more than tensors" in refusal(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, name: str, share: float) -> None:
    file = WRITERS[name](tmp_path / name, STATE)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert "is damaged, or no file of weights" in refusal(file)


@pytest.mark.parametrize("name", WRITERS)
def test_damage_anywhere_is_one_sentence(tmp_path: Path, name: str) -> None:
    file, places = WRITERS[name](tmp_path / name, STATE), random.Random(0)
    whole = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(places.randrange(1, 5)):
            damaged[places.randrange(len(damaged))] = places.randrange(256)
        file.write_bytes(damaged)
        try:
            load_detector(file)  # a changed number can't be noticed
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": 3}, {"model": {"a": "text"}}, {1: torch.ones(2)}])
def test_what_holds_no_weights_by_name_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "holds no dictionary of weights by name" in refusal(tmp_path / "a.pth")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.caffemodel").write_bytes(b"")
    assert "ends in none of .bin, .pth, .pt, .pkl" in refusal(tmp_path / "a.caffemodel")


# Where they are


def test_a_file_is_found_in_its_folder(tmp_path: Path) -> None:
    write_pickle(tmp_path / "other.pkl", STATE)
    assert find_file(tmp_path) == tmp_path / "other.pkl" == find_file(tmp_path / "other.pkl")
    write_detectron(tmp_path / "pytorch_model.bin", STATE)
    (tmp_path / "config.yaml").write_text("model: {}")
    assert find_file(tmp_path) == tmp_path / "pytorch_model.bin"


def test_without_weights_it_says_what_is_needed_where_it_is_and_what_does_not_help(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    (tmp_path / "b.pth").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for weights, problem in (
        (None, "The detector needs its weights"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "holds no file with weights"),
        (tmp_path, "holds 2 files with weights: give the file itself"),
    ):
        with pytest.raises(CheckpointError, match=problem) as error:
            find_file(weights)
        for word in (
            "pytorch_model.bin (262 MB)",
            "huggingface.co/unc-nlp/frcnn-vg-finetuned",
            "--extractor grid",
        ):
            assert word in str(error.value)
        assert "do not fit LXMERT's released weights" in str(error.value)


def test_names_of_classes_are_read_where_they_lie_beside_the_weights(tmp_path: Path) -> None:
    assert read_names(tmp_path) == {}
    (tmp_path / "objects_vocab.txt").write_text("\n".join(f"object {n},thing {n}" for n in range(11)))
    (tmp_path / "attributes_vocab.txt").write_text("".join(f"attribute {n}\n" for n in range(7)))
    names = read_names(tmp_path)
    assert names["object_names"][10] == "object 10" and names["attribute_names"][0] == "attribute 0"
    (tmp_path / "attributes_vocab.txt").write_text("red\n")
    with pytest.raises(CheckpointError, match=r"attributes_vocab.txt holds 1 names, not 7"):
        read_names(tmp_path)
