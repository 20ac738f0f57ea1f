"""What is said before a run trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.helpers.small import write_dataset

from lxmert.tokens import load_tokenizer
from tasks.finetune.args import VqaArgs
from tasks.finetune.data import load_splits
from tasks.finetune.notes import random_notes, vocabulary_notes
from tasks.finetune.spec import ModelSpec
from vqadata.folder import DataFolder

SCRATCH, BERT, WHOLE = ("",), ("encoder.visn_fc.", "encoder.r_layers.", "encoder.x_layers.", "pooler."), ()


@pytest.mark.parametrize(
    ("changes", "initialised", "drawn"),
    [
        ({"strategy": "standard"}, SCRATCH, None),
        ({"strategy": "Frozen"}, WHOLE, None),
        ({"strategy": "Frozen"}, SCRATCH, "language layers, vision layers, cross layers"),
        ({"strategy": "SpotTune_Block"}, SCRATCH, "language layers, vision layers, cross layers"),
        ({"strategy": "SpotTune"}, BERT, "vision layers, cross layers"),
        ({"strategy": "standard", "tuned": "lora"}, BERT, "vision layers, cross layers"),
        ({"strategy": "standard", "tune": "language.1"}, BERT, "vision layers, cross layers"),
        ({"strategy": "standard", "embeddings": "frozen"}, BERT, "region embeddings"),
    ],
)
def test_layers_that_stay_as_they_were_drawn_are_named(
    args: VqaArgs, changes: dict[str, Any], initialised: tuple[str, ...], drawn: str | None
) -> None:
    spec = ModelSpec.of(replace(args, **changes))
    notes = list(random_notes(spec, SimpleNamespace(initialised=initialised)))
    assert len(notes) == (drawn is not None)
    assert all(f"never trained: {drawn} start from random weights" in note for note in notes)


def test_the_share_of_unknown_word_pieces_and_the_commonest_words_are_told(
    pretrained: Path, tmp_path: Path
) -> None:
    folder = DataFolder(tmp_path, "mine")
    write_dataset(folder.path)
    tokenizer = load_tokenizer(str(pretrained))

    def notes(splits: str) -> list[str]:
        (dataset,) = load_splits(folder, {"train": splits}, tokenizer, folder.read_answers(), None)
        return list(vocabulary_notes(tokenizer, dataset, folder, splits))

    assert notes("train") == []
    text = folder.split_file("nominival").read_text()
    folder.split_file("nominival").write_text(text.replace('"sent": "red', '"sent": "meaning of'))
    questions = text.count('"sent": "red')
    (note,) = notes("nominival")
    assert f"unknown word pieces in the training questions: {2 * questions} of " in note
    assert note.endswith(f"most often meaning ({questions}), of ({questions})")
