"""Weights & Biases in a process of its own, which can neither end nor change nor hold up the run it shows.

`training.tracker.Wandb` starts it with the options of `wandb.init` as JSON, and writes a line of JSON to it
for every step, [numbers, paths of pictures, step], and in the end null. It answers with lines of JSON, too:
["say", what the user should know], and ["fail", why] before it gives up.
"""

import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

INIT_TIMEOUT = 20  # seconds; then curves are kept offline
FINISH_TIMEOUT = 60  # seconds that the end of a run waits for the last curves


def main() -> None:
    """Log what comes on stdin; exit code 1 if that fails."""
    options, last_resort = json.loads(sys.argv[1]), len(sys.argv) > 2
    _ignore_signals()
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    lines = os.dup(1)  # W&B itself, and whatever it starts, prints nowhere
    os.dup2(2, 1)

    def say(text: str, kind: str = "say") -> None:
        os.write(lines, json.dumps([kind, text]).encode() + b"\n")

    def begin_again(reason: str) -> None:
        """This process anew and offline, with none of the user's settings of W&B: any may be the reason.

        Not just a second `init`, which would meet the first one's run.
        """
        say(f"W&B did not begin ({reason}); its curves are kept offline.")
        os.dup2(lines, 1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"WANDB_CONFIG_DIR": options["dir"] + "/wandb", "WANDB_ERROR_REPORTING": "false"}
        arguments = json.dumps(options | {"mode": "offline"}), "last resort"
        os.execve(sys.executable, [sys.executable, "-m", "training.wandb_process", *arguments], environment)

    try:
        import wandb

        hanging = threading.Timer(2 * INIT_TIMEOUT, begin_again, ["no answer"])
        hanging.daemon = True
        try:
            if not last_resort:
                hanging.start()
            settings = wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT, console="off")
            run = wandb.init(settings=settings, **options)
            hanging.cancel()
        except BaseException as error:
            hanging.cancel()
            if last_resort:
                raise
            begin_again(_name(error))
        for numbers, pictures, step in iter(lambda: json.loads(sys.stdin.readline() or "null"), None):
            run.log(numbers | {name: wandb.Image(path) for name, path in pictures.items()}, step=step)
        run.finish()
        if getattr(run, "offline", False):
            runs, usual = Path(run.dir).parent.parent, Path(options["dir"], "wandb")
            shown = usual if usual.resolve() == runs.resolve() else runs  # which may be a longer path
            say(
                "W&B's curves are kept offline. To send them:\n"
                f"  wandb sync {shlex.quote(str(shown))}/offline-run-*"
            )
    except BaseException as error:  # SystemExit too: it is somebody else's code
        say(_name(error), "fail")
        os._exit(1)
    os._exit(0)  # nothing of W&B's is to be waited for


def _ignore_signals() -> None:
    """The run decides when it ends; what ends the run tells every process of a job."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_after(parent: int) -> None:
    """End some time after the run does, whatever W&B still does: a killed run leaves nothing behind."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(FINISH_TIMEOUT)
    os._exit(1)


def _name(error: BaseException) -> str:
    """What an error says, of which libraries may make long texts."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main()
