"""The hub, damaged files and files that cannot be trusted: one sentence each, and no code is run."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from tests.helpers.checkpoints import ANSWERS, load, small_config, write_folder, write_original

import lxmert.sources
from common.errors import CheckpointError
from lxmert.sources import local_folder, read_tensors


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_without_a_network_a_hub_id_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("first line\nsecond line")

    monkeypatch.setattr(lxmert.sources, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="unc-nlp/lxmert-base-uncased is not a folder, and") as error:
        load(pretrained="unc-nlp/lxmert-base-uncased")
    assert "\n" not in str(error.value)


def test_what_can_be_no_hub_id_is_not_looked_for() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a model"):
        load(pretrained="snap/pretrained/no such folder")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_only_needed_files_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    requested: set[str] = set()

    def download(source: str, allow_patterns: list[str]) -> str:
        requested.update(allow_patterns)
        if weights in allow_patterns:
            write_folder(tmp_path, weights)
        return str(tmp_path)

    monkeypatch.setattr(lxmert.sources, "snapshot_download", download)
    assert load(pretrained="someone/lxmert").answers == ANSWERS
    assert ("pytorch_model.bin" in requested) == (weights == "pytorch_model.bin")
    assert not any("*" in pattern for pattern in requested)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a folder"):
        local_folder(str(tmp_path / "file"), ["vocab.txt"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["m_LXRT.pth", "pytorch_model.bin"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, name: str, zipped: bool) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / name
    small_config().to_json_file(tmp_path / "config.json")
    torch.save({"bert.x": TouchesAFile(trap)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="was refused: it would run code when read") as error:
        load(load_lxmert=str(file)) if name.endswith("pth") else load(tmp_path)
    assert "\n" not in str(error.value)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # the file is a trap indeed
    assert trap.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_that_would_run_code_is_refused_without_a_warning(
    tmp_path: Path, protocol: int, recwarn: pytest.WarningsRecorder
) -> None:
    trap = tmp_path / "trap"
    content = pickle.dumps({"bert.x": TouchesAFile(trap)}, protocol)
    (tmp_path / "m_LXRT.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="refused"):
        load(load_lxmert=f"{tmp_path}/m")
    assert not trap.exists() and not recwarn.list
    pickle.loads(content)
    assert trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_original_checkpoint_is_one_sentence(tmp_path: Path, share: float, zipped: bool) -> None:
    file = Path(f"{write_original(tmp_path, _use_new_zipfile_serialization=zipped)}_LXRT.pth")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="damaged") as error:
        load(load_lxmert=str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_cut_safetensors_are_one_sentence(tmp_path: Path, share: float) -> None:
    write_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"\x80", pickle.dumps([1], 2)[:-1], b"\0" * 512]
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m_LXRT.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load(load_lxmert=str(file))


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_in_a_pickle_is_one_sentence(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "m.pth"
    tensors = {f"bert.{number}.weight": torch.ones(2, 3) for number in range(300)}  # over 256: longer opcodes
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    places = random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole[: places.randrange(len(whole))] if places.random() < 0.5 else whole)
        for _ in range(places.randrange(4)):
            place = places.randrange(len(damaged) + 1)
            damaged[place : place + 1] = places.randbytes(1)
        file.write_bytes(damaged)
        try:
            read_tensors(file)  # a changed number in a tensor can't be noticed
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("content", [torch.ones(3), {"state_dict": {"bert.x": torch.ones(3)}}, {}])
def test_what_holds_no_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m_LXRT.pth")
    with pytest.raises(CheckpointError, match=r"no dictionary of tensors|holds no LXMERT"):
        load(load_lxmert=f"{tmp_path}/m")


# Memory


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin"])
def test_tensors_that_are_read_own_their_memory(tmp_path: Path, name: str) -> None:
    """A file that changes, or two names for one storage in it, must not change a model."""
    whole = torch.arange(12.0)
    file = tmp_path / name
    tensors = {"a": whole[:4], "b": whole[:4], "c": whole.view(3, 4).t()}
    if name == "m.bin":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
    tensors = read_tensors(file)
    file.write_bytes(bytes(file.stat().st_size))
    tensors["a"].zero_()
    assert torch.equal(tensors["b"], whole[:4])
    assert torch.equal(tensors["c"], whole.view(3, 4).t())
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in tensors.values())
