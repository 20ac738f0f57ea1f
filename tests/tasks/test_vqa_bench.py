from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.small import random_inputs, small_config
from transformers import LxmertForQuestionAnswering

from common.errors import UserError
from kernels.dropout import Dropout
from kernels.linear import Linear
from tasks import vqa_bench
from tasks.bench.memory import process_peak, tensor_peak
from tasks.bench.picture import COLOURS, PANELS
from tasks.bench.table import FIGURES, HIGHLIGHTS
from tasks.bench.variants import ANSWERS, Variant, build_variant, earlier_arithmetic, list_variants
from tasks.finetune import model
from tasks.finetune.policies import NETWORKS
from tasks.finetune.strategies import STRATEGIES, Strategy
from tasks.vqa_bench import parse_args, trim

SIZES = [
    *("--hidden", "32", "--heads", "2", "--features", "16", "--layers", "1/1/1"),
    *("--batch", "4", "--steps", "1", "--repeats", "1"),
]


@pytest.mark.slow
def test_a_small_benchmark_measures_every_row_and_is_shown_again_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, readme, full = tmp_path / "bench.json", tmp_path / "README.md", tmp_path / "run" / "BENCHMARKS.md"
    full.parent.mkdir()
    for page in (readme, full):
        page.write_text("before\n<!-- performance:begin -->\nold\n<!-- performance:end -->\nafter\n")
    vqa_bench.main([*SIZES, "--json", str(file), "--readme", str(readme)])
    (table,) = json.loads(file.read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == [variant.name for variant in list_variants("lxmert")]
    assert all(row[figure][0] > 0 for row in rows.values() for figure in FIGURES if figure != "process")
    printed, short, long = capsys.readouterr().out, readme.read_text(), full.read_text()
    assert max(map(len, printed.splitlines())) <= 80 and all(name in printed for name in rows)
    assert all(f"| {name} |" in long for name in rows) and "old" not in short + long
    assert short.count("\n| ") == 2 + len(HIGHLIGHTS) and short.endswith("end -->\nafter\n")
    picture = tmp_path / "visualizations" / "readme" / "performance.png"
    assert f"]({picture.relative_to(tmp_path)})" in short
    before = picture.read_bytes()
    picture.unlink()
    monkeypatch.setattr(vqa_bench, "measure_all", None)  # would fail if it were called
    vqa_bench.main(["--from-json", str(file), "--readme", str(readme)])
    assert (capsys.readouterr().out, readme.read_text(), full.read_text()) == (printed, short, long)
    assert picture.read_bytes() == before


def measured_at(batch: int) -> dict[str, Any]:
    """As if every figure of every variant were the batch size."""
    figures = {figure: [batch] for figure in FIGURES}
    return {
        "hardware": {"processor": "a processor", "threads": 2},
        "versions": {"torch": "1", "transformers": "2"},
        "arguments": {"batch": str(batch), "repeats": "1"},
        "rows": [
            {"name": variant.name, "against": variant.against} | figures
            for variant in list_variants("lxmert")
        ],
    }


def test_each_batch_size_gets_a_table_and_the_readme_shows_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vqa_bench, "measure_all", lambda variants, args, batch: measured_at(batch))
    file, readme, full = tmp_path / "bench.json", tmp_path / "README.md", tmp_path / "run" / "BENCHMARKS.md"
    full.parent.mkdir()
    for page in (readme, full):
        page.write_text("<!-- performance:begin -->\n<!-- performance:end -->\n")
    vqa_bench.main(["--batch", "32,128,256", "--json", str(file), "--readme", str(readme)])
    printed, short, long = capsys.readouterr().out, readme.read_text(), full.read_text()
    for batch in (32, 128, 256):
        assert f"\n**Batch {batch}**\n" in long and f"batch {batch}\n" in printed
        assert long.count(f"| standard, fp32 | {batch}.0 | {batch}.0 |") == 1
    assert "| standard, fp32 | 32.0 | 32.0 |" in short and "128" not in short
    vqa_bench.main(["--from-json", str(file), "--readme", str(readme)])
    assert (capsys.readouterr().out, readme.read_text(), full.read_text()) == (printed, short, long)


def test_a_file_of_one_size_as_it_was_written_before_is_still_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(measured_at(32)))
    new.write_text(json.dumps([measured_at(32)]))
    vqa_bench.main(["--from-json", str(old)])
    shown = capsys.readouterr().out
    vqa_bench.main(["--from-json", str(new)])
    assert capsys.readouterr().out == shown and "standard, fp32" in shown


def test_every_batch_size_is_measured_with_batches_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measure(
        variant: Variant, config: Any, batches: list[vqa_bench.Batch], *rest: Any
    ) -> dict[str, float]:
        sizes.extend(len(target) for _, target in batches)
        return {}

    monkeypatch.setattr(vqa_bench, "measure", measure)
    monkeypatch.setattr(vqa_bench, "measure_memory", lambda *arguments: 0.0)
    args = parse_args([*SIZES, "--batch", "3,5"])
    for batch in args.batch:
        measured = vqa_bench.measure_all(list_variants("lxmert")[:1], args, batch)
        assert (
            measured["arguments"]["batch"] == str(batch)
            and measured["versions"]["torch"] == torch.__version__
        )
    assert sizes == [3, 3, 5, 5]


def test_every_adaptive_strategy_is_measured_with_every_policy_in_both_precisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(STRATEGIES, "Toy", Strategy("Toy", "a toy", "layer"))
    variants = {variant.name: variant for variant in list_variants("light")}
    for strategy in STRATEGIES.values():
        names = [f", {policy} policy" for policy in NETWORKS] if strategy.adaptive else [""]
        assert {f"{strategy.name}{n}, {p}" for n in names for p in ("fp32", "bf16")} <= set(variants)
    assert variants["Toy, light policy, bf16"].against == ("dense SpotTune_Block", "standard, bf16")
    assert all(set(variant.against) <= set(variants) for variant in variants.values())
    drawn = [f"{name}, {p}" for panel in PANELS.values() for name in panel.values() for p in COLOURS]
    assert {*HIGHLIGHTS, *drawn} <= set(variants)


def test_what_a_compiler_takes_has_a_second_row_on_request() -> None:
    plain, more = list_variants("light"), list_variants("light", compiled=True)
    assert more[: len(plain)] == plain and not any(variant.compiled for variant in plain)
    compiled = more[len(plain) :]
    for precision in ("fp32", "bf16"):
        for name in ("standard", "Frozen", "SpotTune_Block + LoRA, embeddings frozen"):
            row = next(row for row in compiled if row.name == f"{name}, {precision}, compiled")
            assert row.against == (f"{name}, {precision}",)
    for row in compiled:
        assert row.compiled and (row.tuned == "lora" or not row.adaptive) and row.strategy in STRATEGIES


@pytest.mark.slow
def test_a_compiled_row_trains_compiled_and_evaluates_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length is compiled before the clock runs, and the operations are not known."""
    shapes: list[tuple[int, ...]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        assert torch.is_grad_enabled()
        shapes.extend({tuple(i.shape) for i in inputs if i.dtype == torch.int64 and i.dim() == 2})
        return graph.forward

    monkeypatch.setattr(model, "COMPILER", compiler)
    args = parse_args([*SIZES, "--compile", "--steps", "2", "--only", "standard, fp32, compiled"])
    variants = vqa_bench.select_variants(list_variants(args.policy, args.compile), args.only)
    assert [variant.name for variant in variants] == ["standard, fp32", "standard, fp32, compiled"]
    plain, compiled = vqa_bench.measure_all(variants, args, 4)["rows"]
    assert shapes and all(length % model.LENGTH_STEP == 0 for _, length in shapes)
    assert compiled["train"][0] > 0 and compiled["evaluation"][0] > 0 and compiled["tensors"][0] > 0
    assert compiled["train_operations"] == compiled["evaluation_operations"] == [None]
    assert plain["train_operations"][0] > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only", "bf61"], "no variant's name contains 'bf61'"),
        (["--only", "bf16", "--readme", "README.md"], "measure all variants"),
        (["--from-json", "absent.json"], "absent.json is missing"),
        (["--from-json", "other.json"], "was not written by this benchmark"),
        (["--from-json", "empty.json"], "was not written by this benchmark"),
        (["--readme", "other.json"], "must have the markers"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vqa_bench, "measure_all", None)
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "run").mkdir()
    for page in ("README.md", "run/BENCHMARKS.md"):
        (tmp_path / page).write_text("<!-- performance:begin --><!-- performance:end -->")
    with pytest.raises(UserError, match=words):
        vqa_bench.main(flags)


def test_the_baselines_compute_the_same_logits_as_ours() -> None:
    """Otherwise a ratio of speeds would mean nothing."""
    config = small_config()
    config.num_qa_labels = ANSWERS
    inputs = random_inputs(4)
    torch.manual_seed(0)
    dense = build_variant(Variant("", "SpotTune", "fp32", dense=True), config).eval()
    ours = build_variant(Variant("", "SpotTune", "fp32"), config).eval()
    ours.model.load_state_dict(dense.model.state_dict())  # the policies differ, the gates are fixed
    torch.manual_seed(1)
    with earlier_arithmetic(True):
        expected = dense(**inputs)
    torch.manual_seed(1)  # the fixed gates are drawn again
    assert torch.allclose(ours(**inputs).outputs, expected.outputs, atol=1e-5)

    plain = build_variant(Variant("", "standard", "fp32"), config).eval()
    hugging_face = build_variant(Variant("", "huggingface", "fp32"), config).eval()
    assert isinstance(hugging_face.model, LxmertForQuestionAnswering)
    hugging_face.model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in plain.state_dict().items()}
    )
    assert torch.allclose(hugging_face(**inputs)[0], plain(**inputs).outputs, atol=1e-5)


def test_the_dense_variant_has_the_policy_network_of_the_earlier_implementation() -> None:
    config = small_config()
    dense, ours = (
        build_variant(Variant("", "SpotTune", "fp32", dense=dense), config) for dense in (True, False)
    )
    names = dict(dense.policy.named_parameters())
    assert "policy.lxmert.embeddings.word_embeddings.weight" in names
    assert "policy.lxmert.encoder.layer.1.output.dense.weight" in names
    assert not [name for name, _ in ours.policy.named_parameters() if "embeddings" in name]


def test_the_dense_variant_multiplies_and_drops_as_pytorch_does_by_itself() -> None:
    dense, ours = (
        build_variant(Variant("", "SpotTune", "fp32", dense=dense), small_config()) for dense in (True, False)
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
    with process_peak(torch.device("cpu")) as peak:
        torch.ones(25_000_000)
    assert peak() == pytest.approx(0.1, abs=0.02)


def test_the_share_tuned_is_what_the_row_says() -> None:
    variant = build_variant(Variant("", "SpotTune", "fp32", share=0.25), small_config())
    torch.manual_seed(0)
    gates = torch.cat([variant(**random_inputs(16)).gates for _ in range(20)])
    assert gates.mean().item() == pytest.approx(0.25, abs=0.01)


def test_trimming_cuts_to_the_longest_question() -> None:
    inputs = random_inputs(4, tokens=9)
    inputs["attention_mask"][:, 6:] = False
    cut, _ = trim((inputs, torch.zeros(4, 2)))
    assert cut["input_ids"].shape == cut["attention_mask"].shape == (4, 6)
    assert cut["visual_feats"] is inputs["visual_feats"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers", "9/5"], "look like 9/5/5"),
        (["--steps", "0"], "at least 1, not '0'"),
        (["--batch", "32,,64"], "at least 1, not ''"),
    ],
)
def test_a_malformed_size_is_one_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    with pytest.raises(SystemExit):
        parse_args(flags)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_timed_questions_are_as_long_as_real_ones_on_average(steps: int) -> None:
    config = small_config()
    config.vocab_size, config.visual_feat_dim = 2000, 8
    generator = torch.Generator().manual_seed(0)
    batches = vqa_bench.make_batches(32, steps, config, generator, torch.device("cpu"))
    lengths = torch.cat([inputs["attention_mask"].sum(1) for inputs, _ in batches[1:]])
    assert len(batches) == steps + 1
    assert lengths.float().mean().item() == pytest.approx(9.5, abs=0.5)
