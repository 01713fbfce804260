"""Starts trainings without importing everything each time: one process that forks when it is told.

It has imported the package and not used JAX, so a child begins where `python -m resnetjax` is after
its imports, half a second later. Requests come on stdin, a line of JSON each.
"""

import importlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401

    from resnetjax.train import command  # noqa: F401

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking: NumPy's threads are idle
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            code = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            print(json.dumps(code), flush=True)
            continue
        child = os.fork()
        if child == 0:
            return live(request)  # and ends as any interpreter does
        print(json.dumps(child), flush=True)


def live(request: dict[str, Any]) -> None:
    os.environ.update(request["environment"])
    os.setpgrp()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.resetwarnings()
    report_events(request["events"])
    stop_in_evaluation(request["stop"])
    for name, value in request["patches"].items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)

    import jax

    # Its defaults were read from the environment when it was imported.
    jax.config.update("jax_compilation_cache_dir", request["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    from resnetjax.cli import main

    main(["train", *request["arguments"]])


def report_events(path: str) -> None:
    """Writes a line whenever a run comes to a place at which it may be killed."""
    from resnetjax.train.checkpoint import Checkpoints
    from resnetjax.train.loop import _Run
    from resnetjax.train.metrics_log import MetricsLog
    from resnetjax.train.setup import Setup

    events = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(text: str) -> None:
        os.write(events, f"{text} at {time.monotonic():.6f}\n".encode())

    def around(owner: Any, name: str, event: str) -> None:
        original = getattr(owner, name)

        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            tell(f"{event} begins")
            result = original(self, *args, **kwargs)
            tell(f"{event} ends")
            return result

        setattr(owner, name, told)

    around(Checkpoints, "_write", "save")
    around(_Run, "_evaluate", "evaluation")
    around(Setup, "__enter__", "compiling")
    write = MetricsLog.write

    def write_and_tell(self: MetricsLog, line: dict[str, Any]) -> None:
        write(self, line)
        if "loss" in line:
            tell(f"step {line['step']}")

    MetricsLog.write = write_and_tell  # type: ignore[method-assign]


def stop_in_evaluation(step: int | None) -> None:
    from resnetjax.train.loop import _Run

    evaluate = _Run._evaluate

    def stop_and_evaluate(run: _Run) -> None:
        if run.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
            while run.signals.received is None:
                time.sleep(0.001)
        evaluate(run)

    _Run._evaluate = stop_and_evaluate  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
