"""Devices as a mesh of `data` x `model`, and where each array of a run lies on it."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnetjax.data.host_batch import HostBatch
from resnetjax.errors import ConfigError

# What tells that a process is one of several, after `jax._src.clusters` in JAX 0.10, which has no
# public name: how many there are (Slurm, Open MPI, slices of TPUs), their addresses (TPU pods on
# Kubernetes), or that it was started as one of them. On a TPU machine of Google's cloud, which JAX
# sets TPU_ML_PLATFORM on when it is imported, JAX asks the machine's metadata.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_NAMES = ("JAX_COORDINATOR_ADDRESS", "JOB_COMPLETION_INDEX")
_TPU = ("TPU_ML_PLATFORM",)


def join_processes(
    *, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the processes of a run, before anything else asks JAX for devices.

    Slurm, Open MPI, Kubernetes and TPU pods are detected by `jax.distributed`; elsewhere all three
    values are needed. A single process needs none, and this does nothing.

    Args:
        coordinator: Address and port of process 0.
        processes: How many there are.
        process: Which of them this is, from 0.

    Raises:
        ConfigError: Some of the three are given and some not, or the processes do not find one
            another.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise ConfigError("coordinator, processes and process are given together or not at all")
    elif not _signs():
        return
    try:
        # By default it takes JAX 100 s to find that a process is gone, and 300 s to give up waiting
        # for the others at the end.
        jax.distributed.initialize(
            *given, heartbeat_timeout_seconds=15, shutdown_timeout_seconds=60
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = f" (by {', '.join(_signs())})" if coordinator is None else ""
        raise ConfigError(
            f"this process is one of several{reason}, but cannot join them: {error}\n"
            "Say where they are: --coordinator HOST:PORT --processes N --process I, the one at "
            "HOST with I=0. A process that is alone takes --coordinator localhost:1234 "
            "--processes 1 --process 0. On Kubernetes, `pip install kubernetes` lets JAX find them."
        ) from error


def _signs() -> list[str]:
    """The variables that say that this is one of several processes."""
    several = [name for name in _COUNTS if int(os.environ.get(name) or 1) > 1]
    several += [name for name in _LISTS if "," in os.environ.get(name, "")]
    several += [name for name in _NAMES if os.environ.get(name)]
    settled = any(name in os.environ for name in ("TPU_SKIP_MDS_QUERY", *_LISTS))
    return several if settled else several + [name for name in _TPU if name in os.environ]


def make_mesh(*, model: int = 1) -> Mesh:
    """All devices of all processes, `model` of them to a row.

    Raises:
        ConfigError: The devices cannot be split so.
    """
    devices = jax.device_count()
    if devices % model:
        raise ConfigError(f"parallelism.model={model} is not allowed: use a divisor of {devices}")
    return jax.make_mesh((devices // model, model), ("data", "model"), (_AUTO, _AUTO))


_AUTO = jax.sharding.AxisType.Auto


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches: rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "model")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """For each array of a state: its largest axis that divides, over `model`; others are whole.

    Args:
        mesh: From `make_mesh`.
        state: Arrays, or their shapes (`jax.eval_shape`).
    """
    size = mesh.shape["model"]

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, edge in enumerate(leaf.shape) if edge % size == 0 and edge >= size]
        if size == 1 or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(
            mesh,
            PartitionSpec(*("model" if axis == longest else None for axis in range(longest + 1))),
        )

    return jax.tree.map(place, state)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending.

    Raises:
        ConfigError: The batch cannot be split over the devices.
    """
    if batch_size % mesh.size:
        raise ConfigError(
            f"batch_size={batch_size} is not allowed: use a multiple of the {mesh.size} devices"
        )
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = {row for index in slices.values() if index for row in range(batch_size)[index[0]]}
    return np.array(sorted(rows))


def place_batch(mesh: Mesh, rows: np.ndarray, batch: HostBatch, batch_size: int) -> dict[str, Any]:
    """A host's rows, on its devices, as global arrays.

    Args:
        mesh: From `make_mesh`.
        rows: From `local_rows`.
        batch: Those rows.
        batch_size: Of the global batch.
    """
    sharding = batch_sharding(mesh)

    def place(values: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first = range(batch_size)[index[0]]
            start = int(np.searchsorted(rows, first.start))
            return values[start : start + len(first)]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, part)

    return {
        "images": place(batch.images),
        "labels": place(batch.labels),
        "weights": place(batch.weights),
    }


def place_state(state: Any, shardings: Any) -> Any:
    """Host arrays, whole in every process, as global arrays of these shardings."""

    def place(values: Any, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(values)
        return jax.make_array_from_callback(
            values.shape, sharding, lambda index: np.array(values[index])
        )

    return jax.tree.map(place, state, shardings)


def gather(tree: Any) -> Any:
    """Global arrays as host arrays, whole in every process; all processes must call it."""

    def fetch(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(fetch, tree)
