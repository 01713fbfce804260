"""What a run compiles: each program once, whatever happens between its steps."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from resnetjax.train.loop import train
from resnetjax.train.recipe import Checkpointing, Evaluation, Parallelism, Recipe
from resnetjax.train.step_folders import StepFolders
from tests.train.tiny_finetune import finetune, write_images, write_weights

EVENT = "/jax/core/compile/backend_compile_duration"
compiled = collections.Counter()


def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == EVENT:
        compiled[kwargs["fun_name"]] += 1


def counted(recipe: Recipe, workdir: Path, *, after: int | None = None) -> dict[str, int]:
    """What a run compiles; resumed, where `after` is given, behind this step."""
    if after is not None:
        folders = StepFolders(workdir / "checkpoints", log=print)
        for step in folders.complete():
            if step > after:
                folders.delete(step)
        assert folders.complete()[-1] == after
    compiled.clear()
    outcome = train(recipe, workdir)
    assert outcome.finished
    return dict(compiled)


def compilations(folder: Path, *, model: int) -> dict[str, dict[str, int]]:
    """Of runs of 5 steps an epoch, whose body is unfrozen after the first."""
    weights = write_weights(folder / "weights")
    data = write_images(folder / "data")

    def recipe(epochs: int) -> Recipe:
        return finetune(
            weights,
            data,
            epochs=epochs,
            parallelism=Parallelism(model=model),
            evaluation=Evaluation(exact_statistics_batches=1),
            checkpoint=Checkpointing(every_steps=3, keep=99),
        )

    return {
        "short": counted(recipe(3), folder / "short"),
        "long": counted(recipe(5), folder / "long"),
        "resumed before": counted(recipe(3), folder / "short", after=3),
        "resumed after": counted(recipe(3), folder / "short", after=12),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "model"), [(1, 1), (8, 2)])
def test_a_run_compiles_its_step_once_and_once_more_where_parts_are_unfrozen(
    tmp_path, devices, model
):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.test_compilations", str(tmp_path), str(model)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = json.loads(done.stdout.splitlines()[-1])
    found = {name: (run["jit(train_step)"], run["jit(eval_step)"]) for name, run in runs.items()}
    assert found == {"short": (2, 1), "long": (2, 1), "resumed before": (2, 1),
                     "resumed after": (1, 1)}  # fmt: skip
    # Two more epochs, with evaluations and checkpoints, find all that they need.
    assert not collections.Counter(runs["long"]) - collections.Counter(runs["short"])


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    jax.monitoring.register_event_duration_secs_listener(count)
    print(json.dumps(compilations(Path(sys.argv[1]), model=int(sys.argv[2]))))
