"""The launchers, run in a copy of the repository with stand-ins for Python, pip, trainer and GPU driver."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.helpers.paths import ROOT

RUN = ROOT / "run"
LAUNCHERS = sorted(RUN.glob("*.bash")) + [ROOT / ".ci" / "run"]
TOOLS = ("bash", "env", "cat", "cp", "dirname", "flock", "grep", "mkdir", "readlink", "rm", "sed", "sleep")

# Says which Python runs it and with what, so that tests can look at both.
TRAINER = """
import json, sys
print(json.dumps([sys.executable, *sys.argv[1:]]))
"""

# A Python without the requirements, whose venv and pip are stand-ins and leave a line in `calls`.
# pip fails while there is a file `offline`.
UNEQUIPPED_PYTHON = """#!{bash}
case "$*" in
    "-c import sys; print("*) echo {version} ;;
    "-c import ensurepip"*) exit {no_venv} ;;
    "-m venv --clear .venv") echo venv >>calls; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "-m pip --version") ;;
    "-m pip install"*)
        sleep {pip_seconds}; echo install >>calls; echo "pip got $*"; [[ ! -e offline ]] ;;
    -) script="$(cat)"; [[ $script == *hashlib* ]] && {python} - <<<"$script" ;;
    *) exec {python} "$@" ;;
esac
"""

PIP_FLAGS = "--disable-pip-version-check -r requirements.txt -c run/constraints.txt"

NVIDIA_SMI = """#!{bash}
printf 'GPU %s: NVIDIA A100\\n' 0 1
"""


class Sandbox:
    """A copy of the launchers in a folder with a space, and a PATH that holds a few tools and stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a copy"
        self.bin = folder / "bin"
        self.environment = {"PATH": str(self.bin), "HOME": str(self.root)}
        shutil.copytree(RUN, self.root / "run")
        self.write("requirements.txt", "pytest>=1  # comment\n\nno-such-package; sys_platform == 'none'\n")
        self.write("src/tasks/vqa.py", TRAINER)
        self.bin.mkdir()
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def command(self, name: str, text: str, **values: object) -> None:
        """Put an executable on the PATH, in place of the one that is there."""
        defaults = {"version": "3.11.7", "no_venv": 0, "pip_seconds": 0}
        file = self.bin / name
        file.write_text(text.format(bash=shutil.which("bash"), python=sys.executable, **defaults | values))
        file.chmod(0o755)

    def equipped(self) -> "Sandbox":
        """With a python3 on the PATH that has everything: the one that runs the tests."""
        self.command("python3", '#!{bash}\nexec {python} "$@"\n')
        return self

    def launch(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *command],
            cwd=cwd or self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """What the stand-ins for venv and pip were asked to do."""
        file = self.root / "calls"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*\n", done.stderr)
    assert all(word in done.stderr for word in words)


def trainer_call(done: subprocess.CompletedProcess[str]) -> list[str]:
    """[Python, argument, ...] of the stand-in for the trainer."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- What every launcher promises


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_launcher_is_valid_bash_in_strict_mode_and_begins_with_its_purpose(launcher: Path) -> None:
    subprocess.run(["bash", "-n", str(launcher)], check=True)
    lines = launcher.read_text(encoding="utf-8").splitlines()
    assert re.match(r"#!/usr/bin/env bash|# shellcheck shell=bash", lines[0])
    assert re.match(r"# \w.*\.$", lines[1])
    header = lines[: lines.index("")]
    assert launcher.name in ("env.bash", "run") or max(map(len, header)) <= 80 + len("# ")  # --help shows it
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"
    assert os.access(launcher, os.X_OK) == (launcher.name != "env.bash")  # which is only read by the others


@pytest.mark.parametrize("launcher", ["vqa_finetune", "vqa_test"])
@pytest.mark.parametrize("arguments", [[], ["0"]])
def test_missing_arguments_show_the_usage(sandbox: Sandbox, launcher: str, arguments: list[str]) -> None:
    done = sandbox.launch(f"run/{launcher}.bash", *arguments)
    assert done.returncode == 2
    assert re.match(r"error: a GPU .* needed\.\n", done.stderr)
    assert f"bash run/{launcher}.bash <gpu> <version>" in done.stderr


@pytest.mark.parametrize("launcher", ["vqa_finetune", "vqa_test"])
def test_help_is_the_header_and_then_the_trainers_help(sandbox: Sandbox, launcher: str) -> None:
    done = sandbox.equipped().launch(f"run/{launcher}.bash", "--help")
    *header, last = done.stdout.splitlines()
    assert f"  bash run/{launcher}.bash <gpu> <version>" in "\n".join(header)
    assert json.loads(last)[1:] == ["--help"]


@pytest.mark.parametrize("name", ["a/b", "a b", "-a", ".a", "../a", "", "a;b", "--strategy"])
@pytest.mark.parametrize("launcher", ["vqa_finetune", "vqa_test"])
def test_bad_version_is_refused_before_an_installation(sandbox: Sandbox, launcher: str, name: str) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON)
    assert_one_sentence(sandbox.launch(f"run/{launcher}.bash", "0", name), f"'{name}'")
    assert sandbox.calls() == []


def test_flags_reach_the_trainer_unchanged(sandbox: Sandbox) -> None:
    done = sandbox.equipped().launch("run/vqa_finetune.bash", "cpu", "run-1.b", "--data", "my data", "--x=*")
    assert trainer_call(done)[1:] == ["--version", "run-1.b", "--data", "my data", "--x=*"]
    assert done.stderr == ""


def test_testing_defaults_to_the_runs_own_split_and_best_and_yields_to_flags(sandbox: Sandbox) -> None:
    sandbox.equipped()
    defaults = ["--version", "v", "--test", "--load", "snap/vqa/v/BEST"]
    assert trainer_call(sandbox.launch("run/vqa_test.bash", "cpu", "v"))[1:] == defaults
    done = sandbox.launch("run/vqa_test.bash", "cpu", "v", "--test", "train")
    assert trainer_call(done)[1:] == [*defaults, "--test", "train"]  # the last one counts for argparse


@pytest.mark.parametrize(
    "flags",
    [
        ["--question=is it?"],
        ["--questions", "many.txt"],
        ["--image", "photo.jpg"],
        ["--image-id=a"],
        ["--image_id", "a"],
    ],
)
def test_a_question_is_no_test_of_a_split(sandbox: Sandbox, flags: list[str]) -> None:
    done = sandbox.equipped().launch("run/vqa_test.bash", "cpu", "v", *flags)
    assert trainer_call(done)[1:] == ["--version", "v", "--load", "snap/vqa/v/BEST", *flags]


def test_launcher_works_through_a_symbolic_link_from_any_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.equipped()
    sandbox.write("src/tasks/vqa.py", "import os; print(os.getcwd(), os.environ['PYTHONPATH'], sep='|')")
    link = tmp_path / "elsewhere" / "finetune"
    link.parent.mkdir()
    link.symlink_to(sandbox.root / "run" / "vqa_finetune.bash")
    done = sandbox.launch(str(link), "cpu", "v", cwd=link.parent)
    root = sandbox.root.resolve()
    assert done.stdout.strip().split("|") == [str(root), str(root / "src")]


WITH_FLAGS = sorted({path.name for path in RUN.glob("*.bash")} - {"env.bash"})


@pytest.mark.parametrize("launcher", WITH_FLAGS)
def test_help_begins_with_the_launchers_own_header(sandbox: Sandbox, launcher: str) -> None:
    sandbox.equipped()
    text = (sandbox.root / "run" / launcher).read_text(encoding="utf-8")
    (command, *_) = re.findall(r"(?:src|tests)/[a-z/_]+\.py", text.partition("set -euo")[2]) or [None]
    if command:
        sandbox.write(command, "print('the flags')")
    done = sandbox.launch(f"run/{launcher}", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(text.splitlines()[1].removeprefix("# ") + "\n")
    assert done.stdout.count(text.splitlines()[1].removeprefix("# ")) == 1


def test_the_trainer_learns_where_the_user_stands(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.equipped()
    sandbox.write("src/tasks/vqa.py", "import os; print(os.environ['STARTED_IN'])")
    done = sandbox.launch(str(sandbox.root / "run" / "vqa_test.bash"), "cpu", "v", cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path)


# ---- Which Python


def test_satisfying_python_on_the_path_is_used_as_it_is(sandbox: Sandbox) -> None:
    done = sandbox.equipped().launch("run/vqa_finetune.bash", "cpu", "v")
    assert trainer_call(done)[0] == sys.executable
    assert not (sandbox.root / ".venv").exists()


@pytest.mark.parametrize("torch", ["2.9.1+cu128", "2.14.1+rocm7.0", "2.8.0", "3.0.0"])
def test_a_pytorch_built_for_a_gpu_is_used_if_it_is_neither_too_old_nor_too_new(
    sandbox: Sandbox, torch: str
) -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (requirement,) = (line for line in lines if line.startswith("torch"))
    sandbox.write("requirements.txt", f"{requirement}\n")
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n"
    sandbox.write(f"src/torch-{torch}.dist-info/METADATA", metadata)  # the first place where it is looked for
    sandbox.command("python3", UNEQUIPPED_PYTHON.replace("[[ $script == *hashlib* ]] && ", ""))
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    accepted = not torch.startswith(("2.8", "3"))
    assert sandbox.calls() == ([] if accepted else ["venv", "install"])
    assert ("the python3 on the PATH lacks torch" in done.stderr) != accepted


def test_what_is_pinned_is_required_and_in_its_range() -> None:
    required, pinned = (
        [Requirement(line.split("#")[0]) for line in file.read_text().splitlines() if line.split("#")[0]]
        for file in (ROOT / "requirements.txt", RUN / "constraints.txt")
    )
    ranges = {requirement.name: requirement.specifier for requirement in required}
    assert "torch" in {pin.name for pin in pinned}
    for pin in pinned:
        (version,) = pin.specifier
        assert version.operator == "==" and version.version in ranges[pin.name]


@pytest.mark.parametrize("requirement", ["pytest<1", "no-such-package-anywhere"])
def test_python_that_lacks_a_requirement_is_not_used(sandbox: Sandbox, requirement: str) -> None:
    sandbox.write("requirements.txt", f"# comment\n\n{requirement}  # comment\n")
    sandbox.command("python3", UNEQUIPPED_PYTHON.replace("[[ $script == *hashlib* ]] && ", ""))
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    assert f"because the python3 on the PATH lacks {requirement}." in done.stderr


@pytest.mark.parametrize("file", ["requirements.txt", "run/constraints.txt"])
def test_environment_is_made_once_and_filled_again_when_what_it_gets_changes(
    sandbox: Sandbox, file: str
) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON)
    for _ in range(2):
        assert trainer_call(sandbox.launch("run/vqa_finetune.bash", "cpu", "v"))[1:] == ["--version", "v"]
    assert sandbox.calls() == ["venv", "install"]
    sandbox.write(file, "pytest>=2\n")
    trainer_call(sandbox.launch("run/vqa_finetune.bash", "cpu", "v"))
    assert sandbox.calls() == ["venv", "install", "install"]


def test_failed_installation_says_so_and_is_repeated(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON)
    offline = sandbox.write("offline", "")
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    *before, sentence = done.stderr.splitlines()
    assert done.returncode == 2
    assert f"pip got -m pip install {PIP_FLAGS}" in before
    assert sentence.startswith("error: installing requirements.txt into .venv failed")
    assert not (sandbox.root / ".venv" / "installed").exists()

    offline.unlink()
    trainer_call(sandbox.launch("run/vqa_finetune.bash", "cpu", "v"))
    assert sandbox.calls() == ["venv", "install", "install"]


def test_stamp_of_a_former_installation_does_not_outlive_a_failed_one(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON)
    sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    former = (sandbox.root / "requirements.txt").read_text()
    sandbox.write("requirements.txt", "pytest>=2\n")
    offline = sandbox.write("offline", "")
    assert sandbox.launch("run/vqa_finetune.bash", "cpu", "v").returncode == 2

    offline.unlink()
    sandbox.write("requirements.txt", former)  # half of the newer packages may be installed by now
    trainer_call(sandbox.launch("run/vqa_finetune.bash", "cpu", "v"))
    assert sandbox.calls() == ["venv", "install", "install", "install"]


def test_interpreter_that_vanished_below_the_environment_is_replaced(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON)
    sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    (sandbox.root / ".venv" / "bin" / "python").unlink()
    trainer_call(sandbox.launch("run/vqa_finetune.bash", "cpu", "v"))
    assert sandbox.calls() == ["venv", "install", "venv", "install"]


@pytest.mark.skipif(not shutil.which("flock"), reason="without flock, launchers do not wait for each other")
def test_two_launchers_at_once_install_once(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON, pip_seconds=0.5)
    command = ["bash", "run/vqa_finetune.bash", "cpu", "v"]
    pair = [
        subprocess.Popen(
            command, cwd=sandbox.root, env=sandbox.environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    messages = "".join(process.communicate(timeout=60)[1] for process in pair)
    assert [process.returncode for process in pair] == [0, 0]
    assert messages.count("Waiting for another launcher") == 1
    assert sandbox.calls() == ["venv", "install"]


NO_LOCKS = """#!{bash}
echo "flock: 9: Function not implemented" >&2
exit 71
"""


@pytest.mark.parametrize("flock", [NO_LOCKS, None], ids=["a disk without locks", "no flock"])
def test_without_locks_the_environment_is_made_all_the_same(sandbox: Sandbox, flock: str | None) -> None:
    (sandbox.bin / "flock").unlink(missing_ok=True)
    if flock:
        sandbox.command("flock", flock)
    sandbox.command("python3", UNEQUIPPED_PYTHON)
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    assert trainer_call(done)[1:] == ["--version", "v"]
    assert "This disk has no locks (flock): start no other launcher until .venv is made." in done.stderr
    assert "Waiting" not in done.stderr and "not implemented" not in done.stderr
    assert sandbox.calls() == ["venv", "install"]


def test_old_python_is_named(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON, version="3.8.10")
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    assert_one_sentence(done, "Python 3.10 or newer is needed", f"({sandbox.bin}/python3) is 3.8.10")


def test_newer_python_beside_an_old_one_is_found(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON, version="3.8.10")
    sandbox.command("python3.12", UNEQUIPPED_PYTHON, version="3.12.1")
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    assert trainer_call(done)
    assert "Making .venv with Python 3.12.1" in done.stderr


def test_absent_python_is_named(sandbox: Sandbox) -> None:
    done = sandbox.launch("run/vqa_finetune.bash", "cpu", "v")
    assert_one_sentence(done, "Python 3.10 or newer is needed", "no python3 was found")


def test_absent_venv_module_is_named(sandbox: Sandbox) -> None:
    sandbox.command("python3", UNEQUIPPED_PYTHON, no_venv=1)
    assert_one_sentence(sandbox.launch("run/vqa_finetune.bash", "cpu", "v"), "lacks the venv module")


# ---- Which device


def launch_line(sandbox: Sandbox, gpu: str) -> tuple[list[str], str]:
    """LAUNCH and CUDA_VISIBLE_DEVICES after choose_gpu."""
    script = 'source run/env.bash; choose_gpu "$0"; printf "%s\\n" "${LAUNCH[@]}" "$CUDA_VISIBLE_DEVICES"'
    done = sandbox.equipped().launch("-c", script, gpu)
    *launch, devices = done.stdout.splitlines()
    return launch, devices


def test_without_a_gpu_one_notice_says_that_it_runs_on_the_cpu(sandbox: Sandbox) -> None:
    done = sandbox.equipped().launch("run/vqa_finetune.bash", "0,1", "v")
    assert trainer_call(done)
    assert done.stderr == "no GPU found: 0,1 is ignored, running on the CPU\n"


def test_one_gpu_runs_one_process_and_several_run_one_each(sandbox: Sandbox) -> None:
    sandbox.command("nvidia-smi", NVIDIA_SMI)
    assert launch_line(sandbox, "1") == ([sys.executable], "1")
    assert launch_line(sandbox, "cpu") == ([sys.executable], "")
    launch, devices = launch_line(sandbox, "1,0")
    assert devices == "1,0"
    assert launch[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert launch[launch.index("--num_processes") + 1] == "2"


@pytest.mark.parametrize("gpu", ["a", "0,", ",0", "0 1", "-1", "cpu,0", "", "2", "1,1"])
def test_gpu_that_cannot_be_meant_is_refused(sandbox: Sandbox, gpu: str) -> None:
    sandbox.command("nvidia-smi", NVIDIA_SMI)
    reason = {"2": "there is no GPU 2", "1,1": "named twice"}.get(gpu, "the GPU is a number")
    assert_one_sentence(sandbox.equipped().launch("run/vqa_finetune.bash", gpu, "name"), reason)


# ---- run/test.bash and .ci/run

CHECKING_PYTHON = """#!{bash}
case "$*" in
    -) cat >calls; echo "$0" ;;
    "-m ruff check"*) exit {ruff_exit} ;;
    "-m pytest"*) echo "$*, $OMP_NUM_THREADS thread" ;;
esac
"""


@pytest.mark.parametrize(("ruff_exit", "outcome"), [(0, "passed"), (1, "FAILED")])
def test_every_check_runs_and_any_failure_is_in_the_exit_code(
    sandbox: Sandbox, ruff_exit: int, outcome: str
) -> None:
    sandbox.command("python3", CHECKING_PYTHON, ruff_exit=ruff_exit)
    done = sandbox.launch("run/test.bash")
    assert done.returncode == ruff_exit
    expected = rf"ruff check {outcome} in \d+ s\nruff format passed in \d+ s\n"
    assert re.match(
        rf"{expected}-m pytest -n logical --dist worksteal, 1 thread\npytest passed in \d+ s\n", done.stdout
    )


@pytest.mark.parametrize("flag", ["--pdb", "-s", "-n0", "gpu", "gpu and not slow", "tests/gpu/test_step.py"])
def test_interactive_flags_and_those_for_the_gpu_run_the_tests_in_one_process(
    sandbox: Sandbox, flag: str
) -> None:
    sandbox.command("python3", CHECKING_PYTHON, ruff_exit=0)
    done = sandbox.launch("run/test.bash", "tests/adaptive", flag)
    assert f"-m pytest tests/adaptive {flag}, 1 thread\n" in done.stdout


def test_a_gpu_is_tested_after_the_rest_and_by_itself(sandbox: Sandbox) -> None:
    sandbox.command("python3", CHECKING_PYTHON, ruff_exit=0)
    sandbox.command("nvidia-smi", NVIDIA_SMI)
    assert "-m pytest -m gpu, 1 thread\npytest on the GPU passed in" in sandbox.launch("run/test.bash").stdout
    assert "on the GPU" not in sandbox.launch("run/test.bash", "-x").stdout


def test_continuous_integration_runs_the_test_launcher_in_the_root(sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".ci", sandbox.root / ".ci")
    sandbox.write("run/test.bash", "pwd; exit 3")
    done = sandbox.launch(str(sandbox.root / ".ci" / "run"), cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == (str(sandbox.root.resolve()), 3)


@pytest.mark.parametrize(("installs", "said"), [(0, ""), (1, "tests that need a browser are skipped")])
def test_continuous_integration_installs_a_browser_where_there_is_none(
    sandbox: Sandbox, installs: int, said: str
) -> None:
    shutil.copytree(ROOT / ".ci", sandbox.root / ".ci")
    sandbox.write("run/test.bash", "exit 0")
    sandbox.command(
        "apt-get", '#!{bash}\necho "$1" >>calls\n[[ $1 == update ]] || exit {code}\n', code=installs
    )
    done = sandbox.launch(".ci/run")
    assert done.returncode == 0 and said in done.stderr and bool(done.stderr) == bool(said)
    assert sandbox.calls() == ["update", "install"]
    sandbox.command("chromium", "#!{bash}\n")
    sandbox.launch(".ci/run")
    assert sandbox.calls() == ["update", "install"]  # it is there now


# ---- Launchers of the other commands


PLAIN = [
    path
    for path in sorted(RUN.glob("*.bash"))
    if path.stem not in ("env", "test", "vqa_finetune", "vqa_test")
]


@pytest.mark.parametrize("launcher", PLAIN, ids=lambda path: path.name)
def test_launcher_hands_its_flags_on_and_its_exit_code_back(sandbox: Sandbox, launcher: Path) -> None:
    (script,) = re.findall(
        r"^[^#\n]* ((?:src|tests)/\w+/\w+\.py)", launcher.read_text(encoding="utf-8"), flags=re.M
    )
    assert (ROOT / script).is_file()
    sandbox.write(script, TRAINER + "sys.exit(3 if 'fail' in sys.argv else 0)")
    sandbox.equipped()
    flags = ["--seeds", "0", "--", "--data", "my data"]
    assert trainer_call(sandbox.launch(f"run/{launcher.name}", *flags))[1:] == flags
    assert sandbox.launch(f"run/{launcher.name}", "fail").returncode == 3
