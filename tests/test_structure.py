"""The house stays tidy: the numbers of `tests/structure.py` keep their limits, and each can be broken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests import structure
from tests.helpers.paths import ROOT
from tests.structure import MEASURES, Measure, Sources


@pytest.fixture(scope="module")
def sources() -> Sources:
    return structure.read_sources()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_number_keeps_its_limit(sources: Sources, measure: Measure) -> None:
    places = measure.measure(sources)
    assert measure.value(places) <= measure.limit, "\n".join(places)


def function(name: str, parameters: str = "", lines: int = 1, indent: str = "") -> str:
    return f"{indent}def {name}({parameters}):\n" + f"{indent}    pass\n" * lines


TRAINER = """
import json
import common.files
from adaptive.usage import Usage, variation
from tasks.finetune import messages
from torch import nn
def train():
    from lxmert.units import list_units
"""
OTHER = {
    "common/files.py": "",
    "adaptive/usage.py": "",
    "lxmert/units.py": "",
    "tasks/finetune/messages.py": "",
}
EXPRESSIONS = {  # that ask whether something is adaptive
    "x = strategy.startswith('SpotTune')": "strategy.startswith('SpotTune')",
    "if model.policy is not None: pass": "model.policy is not None",
    "x = 1 if gates is None else 2": "gates is None",
    "if model.gates: pass": "model.gates",
    "while not (slots and other): pass": "slots",
    "x = spec.strategy in GRANULARITIES": "spec.strategy in GRANULARITIES",
    "x = 'share_tuned' in metrics": "'share_tuned' in metrics",
    "x = metrics.get('share_tuned') is None": "metrics.get('share_tuned') is None",
    "x = [row for row in rows if row.share_tuned]": "row.share_tuned",
    "x = name not in ('standard', 'Frozen')": "name not in ('standard', 'Frozen')",
    "x = hasattr(model, 'policy')": "hasattr(model, 'policy')",
    "x = isinstance(model, Adaptive)": "isinstance(model, Adaptive)",
}


def test_imports_of_the_trainer_are_those_of_the_project_wherever_they_stand() -> None:
    sources = {structure.TRAINER: TRAINER, **OTHER}
    assert structure.trainer_modules(sources) == [
        "adaptive.usage",
        "common.files",
        "lxmert.units",
        "tasks.finetune.messages",
    ]
    assert structure.trainer_names(sources) == [
        "adaptive.usage.Usage",
        "adaptive.usage.variation",
        "common.files",
        "lxmert.units.list_units",
        "tasks.finetune.messages",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (function("brief", lines=59), []),
        (function("long", lines=60), ["a.py:1 long: 61 lines"]),
        ("class A:\n" + function("long", lines=60, indent="    "), ["a.py:2 long: 61 lines"]),
        (f"def outer():\n{function('inner', lines=60, indent='    ')}", ["outer: 62", "inner: 61"]),
    ],
)
def test_long_functions_are_found(text: str, found: list[str]) -> None:
    places = structure.long_functions({"a.py": text})
    assert len(places) == len(found)
    assert all(part in place for part, place in zip(found, places, strict=True))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (function("f", "a, b, c, d, e, f"), False),
        (function("f", "a, b, c, /, d, *, e, f, g"), True),
        (function("f", "a, b, c, d, e, *rest, **more"), True),
        ("class A:\n" + function("f", "self, a, b, c, d, e, f", indent="    "), False),
        ("class A:\n" + function("f", "self, a, b, c, d, e, f, g", indent="    "), True),
        ("class A:\n    @staticmethod\n" + function("f", "a, b, c, d, e, f, g", indent="    "), True),
        (
            "class A(autograd.Function):\n" + function("forward", "ctx, a, b, c, d, e, f, g", indent="    "),
            False,
        ),
        ("class A(Function):\n" + function("helper", "ctx, a, b, c, d, e, f, g", indent="    "), True),
        ("class A(nn.Module):\n" + function("forward", "self, a, b, c, d, e, f, g", indent="    "), True),
    ],
)
def test_parameters_are_counted_but_for_those_of_autograd(text: str, found: bool) -> None:
    assert bool(structure.wide_functions({"a.py": text})) == found


@pytest.mark.parametrize(
    ("path", "parameters", "found"),
    [
        ("tasks/compare.py", "args: VqaArgs", True),
        ("vqadata/own.py", "a: int, *, flags: 'VqaArgs | None' = None", True),
        ("tasks/finetune/data.py", "args", True),
        ("tasks/compare.py", "args: argparse.Namespace", False),
        ("tasks/finetune/data.py", "batch_size: int", False),
    ],
)
def test_functions_that_are_handed_all_flags_are_found(path: str, parameters: str, found: bool) -> None:
    assert bool(structure.args_functions({path: function("f", parameters)})) == found


@pytest.mark.parametrize(
    ("measure", "owner", "does_it", "does_not"),
    [
        (structure.atomic_writers, structure.FILES, "aside.rename(path)", "text.replace('a', 'b')"),
        (structure.atomic_writers, structure.FILES, "aside.replace(path)", "dataclasses.replace(a, b=1)"),
        (structure.atomic_writers, structure.FILES, "os.replace(a, b)", "path.write_text('a')"),
        (structure.argument_parsers, structure.CLI, "class P(argparse.ArgumentParser): pass", "Parser()"),
        (
            structure.argument_parsers,
            structure.CLI,
            "parser = ArgumentParser(prog='a')",
            "def f(p: argparse.ArgumentParser): pass",
        ),
        (
            structure.record_validators,
            structure.RECORDS,
            "def wrong(record: Any) -> str | None: pass",
            "def text(name: str) -> str | None: pass",
        ),
        (
            structure.record_validators,
            structure.RECORDS,
            "def look(row): return isinstance(row['sent'], str) and type(row['label']) is dict",
            "def look(row):\n    'Of sent and label.'\n    return isinstance(row, dict)",
        ),
    ],
)
def test_a_second_owner_is_found_wherever_it_is(
    measure: Callable[[Sources], list[str]], owner: str, does_it: str, does_not: str
) -> None:
    assert measure({owner: does_it, "a.py": does_not}) == [f"{owner}:1"]
    assert measure({owner: does_it, "a.py": f"\n{does_it}"}) == [f"{owner}:1", "a.py:2"]


@pytest.mark.parametrize("line", EXPRESSIONS)
def test_every_other_way_to_ask_whether_a_run_is_adaptive_is_found(line: str) -> None:
    found = structure.adaptive_questions({"tasks/a.py": line, "adaptive/adapt.py": line})
    assert found == [f"tasks/a.py:1 {EXPRESSIONS[line]}"]


@pytest.mark.parametrize("line", ["if strategy.adaptive: pass", "x = labels is None", "x = name in NAMES"])
def test_the_one_way_to_ask_and_other_questions_are_left_alone(line: str) -> None:
    strategies = "def adaptive(self): return self.granularity is not None"
    found = structure.adaptive_questions({"tasks/a.py": line, "tasks/strategies.py": strategies})
    assert found == ([".adaptive"] if ".adaptive" in line else [])


def test_the_name_of_the_answer_list_is_found_in_docstrings_too() -> None:
    text = '"""Reads answers.json."""\n'
    assert structure.answers_files({"a.py": text, "b.py": "all_answers = 1\n"}) == ["a.py"]


def test_lines_are_those_of_wc() -> None:
    (measure,) = (measure for measure in MEASURES if measure.measure is structure.lines)
    assert measure.value(measure.measure({"a.py": "", "b.py": "a\n\nb\n"})) == 3


def test_the_script_prints_numbers_and_its_exit_code_says_whether_they_keep_the_limits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure, "read_sources", lambda commit: {structure.TRAINER: function("f")})
    assert structure.main([]) == 0
    monkeypatch.setattr(
        structure, "read_sources", lambda commit: {structure.TRAINER: function("f", lines=60)}
    )
    assert structure.main([]) == 1
    printed = capsys.readouterr().out
    assert (
        "functions of more than 60 lines                 1  at most 0\n    tasks/vqa.py:1 f: 61 lines"
        in printed
    )
    assert structure.main(["--json"]) == 1
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["functions of more than 60 lines"] == {"value": 1, "limit": 0}


def test_the_script_runs_without_any_set_up() -> None:
    """Nothing installed, and no path set: anyone can run it."""
    command = [sys.executable, "-I", str(ROOT / "tests" / "structure.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1) and len(json.loads(done.stdout)) == len(MEASURES), done.stderr
