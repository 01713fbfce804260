"""What is saved comes back bit for bit, in one process and in several."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnetjax.errors import ConfigError, NonFinite, SaveFailed
from resnetjax.train.checkpoint import Checkpoints, state_digest


@flax.struct.dataclass
class TrainState:
    step: Any
    params: Any
    opt_state: Any


class Pair(NamedTuple):
    first: Any
    second: Any


def train_state(optimizer: optax.GradientTransformation) -> TrainState:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "stem": {"kernel": jax.random.normal(keys[0], (3, 3, 4))},
        "head": {
            "kernel": jax.random.normal(keys[1], (4, 2), jnp.bfloat16),
            "bias": jnp.zeros(2),
        },
    }
    opt_state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    _, opt_state = optimizer.update(grads, opt_state, params)
    return TrainState(step=7, params=params, opt_state=opt_state)


def numbers(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"kernel": rng.standard_normal((8, 16), dtype=np.float32), "step": np.array(seed)}


def assert_same(restored: Any, saved: Any) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert type(ours) is np.ndarray
        theirs = np.asarray(theirs, dtype=getattr(theirs, "dtype", jnp.result_type(theirs)))
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()


def run(script: str, *arguments: object, devices: int = 1) -> "subprocess.Popen[str]":
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: "subprocess.Popen[str]") -> str:
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert stderr == ""
    return stdout.strip()


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        optax.multi_transform({"a": optax.adam(1e-3), "b": optax.set_to_zero()}, lambda p: "a"),
    ],
    ids=["adamw", "chain", "multi_transform"],
)
def test_every_leaf_of_a_training_state_comes_back_bit_for_bit(tmp_path, optimizer):
    state = train_state(optimizer)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert restored is not None
    assert restored.step == 7
    assert_same(restored.state, state)


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.arange(5, dtype=jnp.bfloat16),
        jnp.arange(5, dtype=jnp.float16),
        jnp.arange(5).astype(jnp.float8_e4m3fn),
        jnp.arange(5, dtype=jnp.int4),
        np.arange(5) / 3,  # float64, which JAX would halve
        np.array([1 + 2j, -0.0], np.complex64),
        np.array([True, False]),
        np.arange(6).reshape(2, 3).T,  # not contiguous
        np.zeros((0, 3), np.float32),
        np.uint32(2**32 - 1),
        -0.0,
        True,
        3,
    ],
    ids=lambda leaf: f"{getattr(leaf, 'dtype', type(leaf).__name__)}{np.shape(leaf)}",
)
def test_a_leaf_of_any_kind_comes_back_bit_for_bit(tmp_path, leaf):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"leaf": leaf})
        restored = checkpoints.restore({"leaf": leaf})
    assert restored is not None
    assert_same(restored.state, {"leaf": leaf})


@pytest.mark.parametrize("state", [np.arange(3), {}, {"a.b/c é": np.ones(2), "": {"": np.ones(3)}}])
def test_odd_trees_come_back(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(state)
    assert restored is not None
    assert_same(restored.state, state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"name": "resnet50"}, "name is of str"),
        ({"rng": jax.random.key(0)}, r"rng is of key<fry>.*key_data"),
        ({"f": np.array(["a"])}, "f is of <U1"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "two leaves of the state have one path"),
    ],
)
def test_leaves_that_are_no_arrays_of_numbers_are_refused(tmp_path, state, message):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ConfigError, match=message):
        checkpoints.save(1, state)
    assert not list(tmp_path.iterdir())


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    state = {"kernel": jnp.arange(1_000_000.0), "host": np.arange(1000)}
    before = jax.tree.map(np.array, state)
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        after = step(state["kernel"]).block_until_ready()
        state["host"][:] = -1
        restored = checkpoints.restore(before)
    assert state["kernel"].is_deleted()
    assert after[0] == -1
    assert restored is not None
    assert_same(restored.state, before)


def test_facts_and_the_config_digest_come_back(tmp_path):
    facts = {"epoch": 3, "best": 0.1 + 0.2, "seen": ["é", None, {"a": True}]}
    with Checkpoints(tmp_path, config_digest="abc") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(numbers()) is None
        checkpoints.save(20, numbers(), facts=facts)
        restored = checkpoints.restore(numbers())
        latest = checkpoints.latest()
    assert restored is not None
    assert (restored.facts, restored.config) == (facts, "abc")
    assert latest is not None
    assert (latest.step, latest.facts, latest.config) == (20, facts, "abc")
    assert latest.versions["jax"] == jax.__version__


@pytest.mark.parametrize("facts", [{"a": {1, 2}}, {"a": float("nan")}])
def test_facts_that_are_no_json_are_refused(tmp_path, facts):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ConfigError, match="facts must be"):
        checkpoints.save(1, numbers(), facts=facts)


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (1, 0)])
def test_negative_steps_and_keeping_nothing_are_refused(tmp_path, step, keep):
    with pytest.raises(ConfigError, match="is not allowed"):
        Checkpoints(tmp_path, keep=keep).save(step, numbers())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_state_that_is_not_finite_is_refused_by_name_before_anything_is_written(
    tmp_path, value, dtype
):
    bad = {"params": {"head": {"bias": jnp.zeros(3, dtype).at[1].set(value)}}}
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(NonFinite, match=r"step 3 .*params/head/bias"):
            checkpoints.save(3, bad)
        assert not (tmp_path / "run").exists()


def test_the_newest_steps_are_kept_and_a_reader_sees_them(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 10, 15, 20):
            checkpoints.save(step, numbers(step))
        checkpoints.wait()
        assert checkpoints.steps() == (15, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000015", "00000020"]
    with Checkpoints(tmp_path) as reader:
        restored = reader.restore(numbers())
    assert restored is not None
    assert_same(restored.state, numbers(20))


def test_a_step_just_saved_is_kept_even_where_later_ones_are_there(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 5):
            checkpoints.save(step, numbers(step))
        checkpoints.wait()
        assert checkpoints.steps() == (5, 10, 20)


def test_saving_the_same_step_again_changes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, numbers(), facts={"first": True})
        checkpoints.wait()
        written = (tmp_path / "00000010" / "manifest.json").stat()
        checkpoints.save(10, numbers(), facts={"first": False})
        checkpoints.wait()
    assert (tmp_path / "00000010" / "manifest.json").stat() == written


def test_another_state_at_a_step_that_is_there_is_refused(tmp_path):
    with Checkpoints(tmp_path, asynchronous=False) as checkpoints:
        checkpoints.save(10, numbers(0))
        with pytest.raises(SaveFailed, match="there with another state"):
            checkpoints.save(10, numbers(1))
        restored = checkpoints.restore(numbers())
    assert restored is not None
    assert_same(restored.state, numbers(0))


def test_another_structure_is_refused_with_every_leaf_that_differs(tmp_path):
    saved = {"kernel": np.ones((3, 3), np.float32), "old": np.ones(2), "same": np.ones(1)}
    like = {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16), "new": 1, "same": np.ones(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, saved)
        with pytest.raises(ConfigError) as caught:
            checkpoints.restore(like)
    assert str(caught.value).splitlines()[1:] == [
        "  differs     kernel bfloat16[3,4] -> float32[3,3]",
        "  missing     new int32[]",
        "  unexpected  old float64[2]",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["00000010"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_a_dtype_is_never_cast(tmp_path, dtype):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, {"x": np.ones(3, np.float32)})
        with pytest.raises(ConfigError, match=rf"x {np.dtype(dtype)}\[3\] -> float32\[3\]"):
            checkpoints.restore({"x": np.ones(3, dtype)})


def test_closing_leaves_no_thread_and_no_temporary_file(tmp_path):
    threads = set(threading.enumerate())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, numbers())
    assert set(threading.enumerate()) == threads
    assert [path.name for path in tmp_path.iterdir()] == ["00000010"]
    assert sorted(path.name for path in (tmp_path / "00000010").iterdir()) == [
        "arrays",
        "manifest.json",
    ]


def test_an_error_in_the_block_still_finishes_the_save(tmp_path):
    with contextlib.suppress(KeyError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, numbers())
        raise KeyError
    assert Checkpoints(tmp_path).steps() == (10,)


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("run")) as checkpoints:
        monkeypatch.chdir("/")
        checkpoints.save(10, numbers())
    assert (tmp_path / "run" / "00000010").is_dir()


def test_a_folder_that_was_moved_restores(tmp_path):
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(10, numbers())
    (tmp_path / "a").rename(tmp_path / "b")
    with Checkpoints(tmp_path / "b") as checkpoints:
        restored = checkpoints.restore(numbers())
    assert restored is not None
    assert_same(restored.state, numbers())


CHANGES = {
    "a value": {"a": np.array([1, 3], np.int32), "b": np.zeros((2, 3))},
    "a sign": {"a": np.array([1, 2], np.int32), "b": np.full((2, 3), -0.0)},
    "a path": {"a": np.array([1, 2], np.int32), "c": np.zeros((2, 3))},
    "a swap": {"b": np.array([1, 2], np.int32), "a": np.zeros((2, 3))},
    "a dtype": {"a": np.array([1, 2], np.uint32), "b": np.zeros((2, 3))},
    "a shape": {"a": np.array([1, 2], np.int32), "b": np.zeros((3, 2))},
    "a leaf more": {"a": np.array([1, 2], np.int32), "b": np.zeros((2, 3)), "c": np.zeros(0)},
    "a leaf less": {"a": np.array([1, 2], np.int32)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_state_digest_changes_with(change):
    state = {"a": np.array([1, 2], np.int32), "b": np.zeros((2, 3))}
    assert state_digest(CHANGES[change]) != state_digest(state)


def test_the_state_digest_does_not_depend_on_the_kind_of_array_or_node():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    digests = {
        state_digest(Pair(values, {"x": 1})),
        state_digest(Pair(jnp.asarray(values), {"x": np.int32(1)})),
        state_digest({"second": {"x": jnp.array(1)}, "first": np.asfortranarray(values)}),
    }
    assert len(digests) == 1


SHARD = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from resnetjax.train.checkpoint import Checkpoints, state_digest

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("x", "y"))
shardings = {
    "kernel": NamedSharding(mesh, P("x", "y")),
    "step": NamedSharding(mesh, P()),
    "half": NamedSharding(mesh, P(("x", "y"))),
}
with Checkpoints(Path(sys.argv[1])) as one:
    restored = one.restore({
        "kernel": jnp.zeros((8, 16)), "step": jnp.array(0), "half": jnp.zeros(16, jnp.bfloat16)
    })
state = jax.tree.map(jax.device_put, restored.state, shardings)
assert len(state["kernel"].sharding.device_set) == 8
with Checkpoints(Path(sys.argv[2])) as eight:
    eight.save(restored.step, state)
print(state_digest(state))
"""


def test_eight_devices_restore_what_one_saved_and_the_reverse(tmp_path):
    state = {
        "kernel": jnp.asarray(numbers()["kernel"]),
        "step": jnp.array(3),
        "half": jnp.arange(16, dtype=jnp.bfloat16),
    }
    with Checkpoints(tmp_path / "one") as one:
        one.save(3, state)
    digest = output(run(SHARD, tmp_path / "one", tmp_path / "eight", devices=8))
    assert digest == state_digest(state)
    with Checkpoints(tmp_path / "eight") as eight:
        restored = eight.restore(state)
    assert restored is not None
    assert_same(restored.state, state)


PROCESS = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
index = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, index)
from resnetjax.errors import NonFinite, SaveFailed, CheckpointCorrupt
from resnetjax.train import checkpoint
from resnetjax.train.checkpoint import Checkpoints, state_digest

folder, logged, errors = Path(sys.argv[3]), [], []
mesh = jax.make_mesh((4,), ("x",))
def state(seed):
    values = np.random.default_rng(seed).standard_normal((8, 16), dtype=np.float32)
    put = lambda spec: jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, spec), lambda where: values[where])
    return {"sharded": put(P("x")), "replicated": put(P()), "step": seed}

def attempt(action):
    try:
        action()
    except Exception as error:
        errors.append(type(error).__name__)

with Checkpoints(folder, log=logged.append) as checkpoints:
    none = checkpoints.restore(state(0))
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    attempt(lambda: checkpoints.save(40, {"x": state(0)["sharded"] / 0}))
    write, checkpoint._write_arrays = checkpoint._write_arrays, lambda *_: 1 / 0
    checkpoints.save(40, state(40))
    attempt(checkpoints.wait)
    checkpoint._write_arrays = write
    if index == 0:
        (folder / "00000030" / "manifest.json").write_text("{}")
    checkpoints.wait()
    restored = checkpoints.restore(state(0))
    result = [none, restored.step, state_digest(restored.state), state_digest(state(20)), errors]
    if index == 0:
        for path in folder.glob("*/manifest.json"):
            path.write_text("{}")
    attempt(lambda: checkpoints.restore(state(0)))
print(json.dumps([*result, len(logged)]))
jax.distributed.shutdown()
"""


def test_two_processes_save_restore_and_fail_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    both = [run(PROCESS, index, port, tmp_path, devices=2) for index in range(2)]
    results = []
    for process in both:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        results.append(json.loads(stdout.splitlines()[-1]))
    for none, step, restored, saved, raised, _ in results:
        assert (none, step) == (None, 20)
        assert restored == saved
        assert raised == ["NonFinite", "SaveFailed", "CheckpointCorrupt"]
    assert [logged for *_, logged in results] == [1, 0]
