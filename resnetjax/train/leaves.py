"""The leaves of a training state: their paths, their values on the host, and their digest."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from resnetjax.errors import ConfigError, NonFinite
from resnetjax.train import manifest as manifests
from resnetjax.train.manifest import Leaf

PyTree: TypeAlias = Any


def state_digest(state: PyTree) -> str:
    """One SHA-256 over every leaf's path, dtype, shape and bytes, however it is sharded.

    Example:
        >>> state_digest({"weight": np.zeros(3)})[:16]
        '65bf49972a40bf71'
    """
    leaves = {path: manifests.digest(array) for path, array in _host_arrays(state)}
    return manifests.state_digest(leaves)


def copy_to_host(step: int, state: PyTree) -> dict[str, np.ndarray]:
    """The leaves by path, on the first process; on the others nothing, but they must call it too.

    Raises:
        NonFinite: A leaf holds a NaN or an infinity.
        ConfigError: A leaf is no array of numbers, or two have one path.
    """
    if not 0 <= step < 2**31:
        raise ConfigError(f"step={step!r} is not allowed: use 0 or more")
    first = jax.process_index() == 0
    # Every process takes part in gathering an array; the CPU's would be views without a copy.
    arrays = {path: np.array(array, order="C") for path, array in _host_arrays(state) if first}
    for path, array in arrays.items():
        if jnp.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise NonFinite(f"step {step} is not saved: {path} holds NaN or infinity")
    return arrays


def describe(like: PyTree) -> dict[str, Leaf]:
    """The dtypes and shapes by path of arrays, numbers and `jax.ShapeDtypeStruct`.

    Raises:
        ConfigError: A leaf is none of these, or two have one path.
    """
    return {path: _describe_one(path, leaf) for path, leaf in _named_leaves(like).items()}


def _describe_one(path: str, leaf: Any) -> Leaf:
    dtype = _dtype(leaf)
    if any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_)):
        return Leaf(np.dtype(dtype).name, tuple(np.shape(leaf)))
    found = type(leaf).__name__ if dtype == np.dtype(object) else dtype
    raise ConfigError(f"{path} is of {found}: use numbers only, and of a PRNG key its key_data")


def _dtype(leaf: Any) -> Any:
    if hasattr(leaf, "dtype"):
        return leaf.dtype
    # Of a number, the dtype that it has in JAX.
    number = isinstance(leaf, bool | int | float | complex)
    return jnp.result_type(leaf) if number else np.dtype(object)


def differences(wanted: Mapping[str, Leaf], found: Mapping[str, Leaf]) -> str:
    """What differs, a line for each leaf, 20 at most; values count where both digests are known."""
    lines = [f"  missing     {path} {wanted[path]}" for path in wanted.keys() - found.keys()]
    lines += [f"  unexpected  {path} {found[path]}" for path in found.keys() - wanted.keys()]
    for path in wanted.keys() & found.keys():
        one, other = wanted[path], found[path]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            lines.append(f"  differs     {path} {one} -> {other}")
        elif one.sha256 not in ("", other.sha256):
            lines.append(f"  differs     {path} in its values")
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return "\n".join(sorted(lines)[:20]) + more


def _host_arrays(state: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """The leaves by path, whole on every process; they may be views of what is on the device."""
    leaves = _named_leaves(state)
    for path, leaf in leaves.items():
        _describe_one(path, leaf)
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.Array):
            whole = leaf.is_fully_addressable or leaf.is_fully_replicated
            leaf = leaf if whole else multihost_utils.process_allgather(leaf, tiled=True)
        yield path, np.asarray(leaf, dtype=_dtype(leaf))


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    found = jax.tree.leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
    if len(leaves) != len(found):
        raise ConfigError("two leaves of the state have one path: use no / in its keys")
    return leaves
