"""One step on one device, on eight under `jit`, `pmap` and `shard_map`: the same numbers.

Eight devices need a process of their own, in which JAX has not started yet. It does all the work,
in float64, and the tests read what it found.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from resnetjax.data.host_batch import HostBatch
from resnetjax.errors import ConfigError
from resnetjax.train.sharding import (
    join_processes,
    local_rows,
    make_mesh,
    place_batch,
    place_state,
    replicated,
    state_sharding,
)

DEVICES, BATCH, STEPS = 8, 16, 3

SCRIPT = """
import dataclasses, json, sys
import jax, numpy as np
from jax.sharding import PartitionSpec as P

jax.config.update("jax_numpy_rank_promotion", "raise")
import resnetjax as rj
from resnetjax.data.host_batch import HostBatch
from resnetjax.errors import ConfigError
from resnetjax.train import sharding
from resnetjax.train.optimizer import make_optimizer, make_schedule
from resnetjax.train.recipe import Optimizer, Parallelism
from resnetjax.train.state import create_state
from resnetjax.train.step import make_model, make_train_step
from tests.train.tiny import CONFIG, batch_of, tiny_recipe

folder, devices, size, steps = sys.argv[1], *map(int, sys.argv[2:])
recipe = tiny_recipe(
    precision="float64",
    optimizer=Optimizer(learning_rate=0.125, nesterov=True, ema_decay=0.5, clip_norm=1.0),
)
per_device = dataclasses.replace(
    recipe, batch_size=size, parallelism=Parallelism(norm_batch=size // devices)
)
_, variables = rj.create(CONFIG, rng=0)
variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
optimizer = make_optimizer(recipe, variables["params"], steps_per_epoch=10)
schedule = make_schedule(recipe, steps_per_epoch=10)
fresh = jax.device_get(create_state(variables, optimizer, recipe))
batches = []
for seed in range(steps):
    # Parts that differ in mean and spread, and examples that do not count.
    batch = batch_of(seed, size)
    batch["images"] = (batch["images"] // np.arange(1, size + 1).reshape(-1, 1, 1, 1)).astype("u1")
    batch["weights"][seed::5] = 0
    batches.append(batch)
facts = {}


def step_of(recipe=recipe, *, norms=None, losses=None):
    model = make_model(recipe, CONFIG, axis_name=norms)
    return make_train_step(model, optimizer, recipe, schedule=schedule, axis_name=losses)


def run(name, step, state=fresh, place=lambda batch: batch):
    losses = []
    for batch in batches:
        state, metrics = step(state, place(batch))
        losses.append(jax.device_get(metrics["loss"]))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    np.savez(f"{folder}/{name}.npz", losses=losses, **arrays)
    return state


run("one", jax.jit(step_of()))

for model in (1, 2):
    mesh = sharding.make_mesh(model=model)
    rows = sharding.local_rows(mesh, size)
    shards = sharding.state_sharding(mesh, fresh)

    def place(batch):
        host = HostBatch(**batch, indices=rows)
        return sharding.place_batch(mesh, rows, host, size)

    def sharded(recipe=recipe):
        return jax.jit(
            step_of(recipe),
            in_shardings=(shards, sharding.batch_sharding(mesh)),
            out_shardings=(shards, sharding.replicated(mesh)),
        )

    state = sharding.place_state(fresh, shards)
    name = f"mesh{devices // model}x{model}"
    last = run(name, sharded(), state, place)
    placed = place(batches[0])["images"]
    facts[name] = {
        "shape": dict(mesh.shape),
        "rows": rows.tolist(),
        "round_trip": bool((np.asarray(placed) == batches[0]["images"]).all()),
        "rows_a_device": sorted({shard.data.shape[0] for shard in placed.addressable_shards}),
        "leaves": [
            [list(x.shape), list(x.addressable_shards[0].data.shape)]
            for x in jax.tree.leaves(last)
        ],
    }
    if model == 1:
        run("per_device_jit", sharded(per_device), state, place)


def split(batch):
    return {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}


pmapped = jax.pmap(
    step_of(norms="data", losses="data"), axis_name="data", in_axes=(None, 0), out_axes=None
)
run("pmap", pmapped, place=split)


def shard_mapped(**axes):
    mesh = sharding.make_mesh()
    step = jax.shard_map(
        step_of(**axes), mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False
    )
    return jax.jit(step)


run("shard_map", shard_mapped(norms="data", losses="data"))
run("per_device_shard_map", shard_mapped(losses="data"))

errors = []
for refused in (
    lambda: sharding.make_mesh(model=3),
    lambda: sharding.local_rows(sharding.make_mesh(model=2), 12),
):
    try:
        refused()
    except ConfigError as error:
        errors.append(str(error))
facts["errors"] = errors
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The folder of results, and what was printed."""
    folder = tmp_path_factory.mktemp("eight")
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    settings = {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    arguments = [str(folder), *map(str, (DEVICES, BATCH, STEPS))]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *arguments],
        env={**os.environ, **settings, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def assert_equal_runs(folder: Path, name: str, other: str) -> None:
    with np.load(folder / f"{name}.npz") as found, np.load(folder / f"{other}.npz") as expected:
        assert sorted(found) == sorted(expected)
        for leaf in expected:
            # float64 sums in another order
            np.testing.assert_allclose(
                found[leaf], expected[leaf], rtol=1e-11, atol=1e-12, err_msg=f"{name} {leaf}"
            )


@pytest.mark.parametrize("name", ["mesh8x1", "mesh4x2", "pmap", "shard_map"])
@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one_however_they_are_programmed(eight, name):
    # Losses, parameters, running statistics, momentum and averages.
    assert_equal_runs(eight[0], name, "one")


@pytest.mark.slow
def test_per_device_batch_norm_under_jit_is_that_of_shard_map_without_an_axis(eight):
    assert_equal_runs(eight[0], "per_device_jit", "per_device_shard_map")
    with (
        np.load(eight[0] / "one.npz") as whole,
        np.load(eight[0] / "per_device_jit.npz") as apart,
    ):
        assert np.abs(whole["losses"] - apart["losses"]).min() > 1e-3


@pytest.mark.slow
def test_a_mesh_of_four_by_two_holds_half_of_each_array_that_divides(eight):
    leaves = eight[1]["mesh4x2"]["leaves"]
    for shape, local in leaves:
        even = [edge for edge in shape if edge % 2 == 0]
        assert np.prod(local) == np.prod(shape) / (2 if even else 1), shape
        if even:
            halved = [edge for edge, part in zip(shape, local, strict=True) if part != edge]
            assert halved == [max(even)]
    assert any(shape != local for shape, local in leaves)
    assert all(shape == local for shape, local in eight[1]["mesh8x1"]["leaves"])


@pytest.mark.parametrize(("name", "shape"), [("mesh8x1", (8, 1)), ("mesh4x2", (4, 2))])
@pytest.mark.slow
def test_a_batch_is_spread_over_all_devices_and_comes_back_in_order(eight, name, shape):
    facts = eight[1][name]
    assert facts["shape"] == dict(zip(("data", "model"), shape, strict=True))
    assert facts["rows"] == list(range(BATCH))
    assert facts["round_trip"]
    assert facts["rows_a_device"] == [BATCH // DEVICES]


@pytest.mark.slow
def test_what_the_devices_do_not_divide_is_refused(eight):
    mesh, batch = eight[1]["errors"]
    assert mesh == "parallelism.model=3 is not allowed: use a divisor of 8"
    assert batch == "batch_size=12 is not allowed: use a multiple of the 8 devices"
    with pytest.raises(ConfigError, match="divisor of 1"):
        make_mesh(model=2)


def test_on_one_device_batch_and_state_come_back_as_they_were():
    mesh = make_mesh()
    rows = local_rows(mesh, 3)
    batch = HostBatch(
        images=np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1),
        labels=np.array([2, 1, 0], np.int32),
        weights=np.array([1, 0, 1], np.float32),
        indices=np.arange(3),
    )
    placed = jax.device_get(place_batch(mesh, rows, batch, 3))
    for name, values in placed.items():
        np.testing.assert_array_equal(values, getattr(batch, name))
        assert values.dtype == getattr(batch, name).dtype
    state = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.int32(4)}
    shardings = state_sharding(mesh, state)
    assert set(jax.tree.leaves(shardings)) == {replicated(mesh)}
    jax.tree.map(np.testing.assert_array_equal, place_state(state, shardings), state)


# ---- Several processes.


@pytest.fixture
def joined(monkeypatch):
    """What JAX is told of the processes; no variable says that there are any."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "JAX_COORD", "JOB_")):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    return calls


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_ML_PLATFORM": "JAX"}, True),  # a TPU machine: its metadata knows
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
        ({"COORDINATOR_ADDRESS": "a:1"}, False),  # which JAX does not read
        ({"JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_jax_is_asked_for_the_others_where_something_says_that_there_are_any(
    joined, monkeypatch, environment, several
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_processes()
    assert joined == [(None, None, None)] * several


def test_processes_that_are_named_are_joined(joined):
    join_processes(coordinator="a:1", processes=2, process=1)
    assert joined == [("a:1", 2, 1)]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError])
def test_processes_that_are_not_found_are_one_message_with_what_to_do(joined, monkeypatch, error):
    def fail(*_, **__):
        raise error("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(ConfigError, match=r"by JOB_COMPLETION_INDEX.*\n.*--coordinator HOST:PORT"):
        join_processes()
