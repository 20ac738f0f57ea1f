from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.helpers.small import random_inputs, small_config
from transformers import LxmertForQuestionAnswering

from kernels.dropout import Dropout
from kernels.linear import Linear
from tasks import vqa_bench
from tasks.bench.memory import process_peak, tensor_peak
from tasks.bench.variants import ANSWERS, Side, attention_step_by_step, build_side
from tasks.vqa_bench import parse_args, trim

SIZES = [
    *("--hidden", "32", "--heads", "2", "--features", "16", "--layers", "1/1/1"),
    *("--batch", "4", "--steps", "1", "--repeats", "1"),
]


@pytest.mark.slow
def test_a_small_benchmark_measures_every_row_and_writes_its_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    report = vqa_bench.main(parse_args([*SIZES, "--only", "bf16", "--json", str(file)]))
    names = [row["name"] for row in report["rows"]]
    assert {"Hugging Face standard", "dense SpotTune", "dense SpotTune_Block"} < set(names)
    figures = ("train", "evaluation", "tensors")
    assert all(row[figure][0] > 0 for row in report["rows"] for figure in figures)
    assert json.loads(file.read_text())["rows"] == json.loads(json.dumps(report["rows"]))


def test_the_baselines_compute_the_same_logits_as_ours() -> None:
    """Otherwise a ratio of speeds would mean nothing."""
    config = small_config()
    config.num_qa_labels = ANSWERS
    inputs = random_inputs(4)
    torch.manual_seed(0)
    dense = build_side(Side("", "SpotTune", "fp32", dense=True), config).eval()
    ours = build_side(Side("", "SpotTune", "fp32"), config).eval()
    ours.model.load_state_dict(dense.model.state_dict())  # the policies differ, the gates are fixed
    torch.manual_seed(1)
    with attention_step_by_step(True):
        expected = dense(**inputs)
    torch.manual_seed(1)  # the fixed gates are drawn again
    assert torch.allclose(ours(**inputs).outputs, expected.outputs, atol=1e-5)

    plain = build_side(Side("", "standard", "fp32"), config).eval()
    hugging_face = build_side(Side("", "huggingface", "fp32"), config).eval()
    assert isinstance(hugging_face.model, LxmertForQuestionAnswering)
    hugging_face.model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in plain.state_dict().items()}
    )
    assert torch.allclose(hugging_face(**inputs)[0], plain(**inputs).outputs, atol=1e-5)


def test_the_dense_side_has_the_policy_network_of_the_earlier_implementation() -> None:
    config = small_config()
    dense, ours = (build_side(Side("", "SpotTune", "fp32", dense=dense), config) for dense in (True, False))
    names = dict(dense.policy.named_parameters())
    assert "policy.lxmert.embeddings.word_embeddings.weight" in names
    assert "policy.lxmert.encoder.layer.1.output.dense.weight" in names
    assert not [name for name, _ in ours.policy.named_parameters() if "embeddings" in name]


def test_the_dense_side_multiplies_and_drops_as_pytorch_does_by_itself() -> None:
    dense, ours = (
        build_side(Side("", "SpotTune", "fp32", dense=dense), small_config()) for dense in (True, False)
    )
    assert not [module for module in dense.modules() if isinstance(module, Linear | Dropout)]
    assert [module for module in ours.modules() if isinstance(module, Linear)]


def test_the_peak_of_the_tensors_is_what_was_held_at_once() -> None:
    device = torch.device("cpu")
    kept = []
    for _ in range(2):  # the second profile must not count what the first one saw come and not go
        with tensor_peak(device) as peak:
            kept.append(torch.zeros(1_000_000))
            (torch.zeros(2_000_000), torch.zeros(3_000_000))
            torch.zeros(1_000_000)
        assert peak() == pytest.approx(24e-3, abs=1e-4)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read as on Linux")
def test_the_peak_of_the_process_covers_what_was_freed_again() -> None:
    with process_peak() as peak:
        torch.ones(25_000_000)
    assert peak() == pytest.approx(0.1, abs=0.02)


def test_the_share_tuned_is_what_the_row_says() -> None:
    side = build_side(Side("", "SpotTune", "fp32", share=0.25), small_config())
    torch.manual_seed(0)
    gates = torch.cat([side(**random_inputs(16)).gates for _ in range(20)])
    assert gates.mean().item() == pytest.approx(0.25, abs=0.01)


def test_trimming_cuts_to_the_longest_question() -> None:
    inputs = random_inputs(4, tokens=9)
    inputs["attention_mask"][:, 6:] = False
    cut, _ = trim((inputs, torch.zeros(4, 2)))
    assert cut["input_ids"].shape == cut["attention_mask"].shape == (4, 6)
    assert cut["visual_feats"] is inputs["visual_feats"]


def test_a_malformed_size_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--layers", "9/5"])
    assert "9/5/5" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_timed_questions_are_as_long_as_real_ones_on_average(steps: int) -> None:
    args = parse_args(["--steps", str(steps), "--batch", "32", "--features", "8"])
    config = small_config()
    config.vocab_size, config.visual_feat_dim = 2000, 8
    batches = vqa_bench.make_batches(args, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    lengths = torch.cat([inputs["attention_mask"].sum(1) for inputs, _ in batches[1:]])
    assert len(batches) == steps + 1
    assert lengths.float().mean().item() == pytest.approx(9.5, abs=0.5)
