"""Verified checkpoints: complete or not there, checked when written and again when restored.

Orbax stores the arrays. By itself it restores flipped bits without a word, counts an empty folder
as a step and casts dtypes silently; so every file and every array has its digest in a manifest.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from resnetjax.errors import CheckpointCorrupt, ConfigError, CorruptFile, SaveFailed
from resnetjax.train import manifest as manifests
from resnetjax.train.leaves import PyTree, copy_to_host, describe, differences, state_digest
from resnetjax.train.manifest import JSON, Leaf, Manifest
from resnetjax.train.processes import together
from resnetjax.train.step_folders import StepFolders

__all__ = ["Checkpoints", "Restored", "state_digest"]

_LIBRARIES = ("flax", "jax", "numpy", "orbax-checkpoint", "resnetjax")
_ORBAX = str(Path(ocp.__file__).parent)
_LOG = logging.getLogger(__name__)


def _asked_for(record: logging.LogRecord) -> bool:
    # What matters of Orbax's warnings is raised here; absl.logging.set_verbosity shows them all.
    asked = logging.getLogger("absl").isEnabledFor(logging.INFO)
    return asked or not record.pathname.startswith(_ORBAX)


logging.getLogger("absl").addFilter(_asked_for)


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and verified.

    Attributes:
        step: The step after which it was saved.
        state: The tree that was asked for, of numpy arrays.
        facts: What was saved beside the state.
        config: The digest of the configuration that it was saved under.
    """

    step: int
    state: PyTree
    facts: Mapping[str, JSON]
    config: str


class Checkpoints:
    """The checkpoints of one run in one folder.

    A step is a folder such as `00001234` with Orbax's `arrays` and a `manifest.json`. It is built
    under a hidden name, read back and verified, and only then takes its name.

    One run writes to a folder; others may read it meanwhile. Under `jax.distributed` every process
    makes every call; the first writes, all read, and an error of one is raised by all.

    Args:
        folder: Made with the first save; each save removes what a killed run left unfinished.
        keep: How many steps are kept, at least 1; older ones go after a newer one was verified.
        asynchronous: Whether `save` returns before the files are written.
        config_digest: Stored with every step, for the caller to compare.
        log: Called with a line for each step set aside.

    Example:
        >>> import tempfile
        >>> state = {"weight": np.arange(3.0), "step": 20}
        >>> with Checkpoints(Path(tempfile.mkdtemp())) as checkpoints:
        ...     checkpoints.save(20, state, facts={"epoch": 2})
        ...     restored = checkpoints.restore(like=state)
        >>> restored.step, restored.facts, state_digest(restored.state) == state_digest(state)
        (20, {'epoch': 2}, True)
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 3,
        asynchronous: bool = True,
        config_digest: str = "",
        log: Callable[[str], None] = _LOG.warning,
    ):
        if keep < 1:
            raise ConfigError(f"keep={keep!r} is not allowed: use 1 or more")
        self._folders = StepFolders(folder, log=log)
        self._keep = keep
        self._asynchronous = asynchronous
        self._config = config_digest
        self._log = log
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # starts with its first task
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        """Itself, to be closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Closes; where an error ends the block, without waiting for the other processes."""
        if kind is None:
            return self.close()
        failure = self._pending.exception() if self._pending else None
        self._pending = None
        self._thread.shutdown()
        if failure is not None:
            self._log(str(failure))

    def save(self, step: int, state: PyTree, *, facts: Mapping[str, JSON] = {}) -> None:
        """Saves a state as it is now: the caller may donate it at once.

        A save under way is waited for first, and where that one failed, its error is raised and
        this one is not begun. A step that is there already with the same arrays is left as it is.

        Args:
            step: The number of steps done.
            state: Any tree of arrays and numbers.
            facts: Whatever else a restart needs, as JSON.

        Raises:
            NonFinite: The state holds a NaN or an infinity; nothing is written.
            ConfigError: A leaf is no array of numbers, or the facts are no JSON.
            SaveFailed: This save (if synchronous) or the one before could not be written.
        """
        self.wait()
        arrays = together(lambda: copy_to_host(step, state))
        facts = together(lambda: _as_json(facts))
        if jax.process_index() == 0:
            self._pending = self._thread.submit(self._write, step, arrays, facts)
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is being written, on any process.

        Raises:
            SaveFailed: The last save could not be written.
        """
        together(self._finish)

    def close(self) -> None:
        """Waits for the last save and ends its thread.

        Raises:
            SaveFailed: The last save could not be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def steps(self) -> tuple[int, ...]:
        """The steps that are complete, oldest first; `restore` tells whether they are sound."""
        return self._folders.complete()

    def latest(self) -> Manifest | None:
        """What the newest step with a sound manifest says of itself; its arrays are not read."""
        for step in reversed(self.steps()):
            with suppress(CorruptFile, OSError):
                return manifests.read(self._folders.path(step))
        return None

    def restore(self, like: PyTree) -> Restored | None:
        """The newest step that is sound, or None where there is no step at all.

        Newer ones that are not sound are logged and renamed, as in `00001234.bad`.

        Args:
            like: The state's structure: arrays, numbers or `jax.ShapeDtypeStruct`.

        Raises:
            ConfigError: The newest step is sound but of another structure.
            CheckpointCorrupt: There are steps and none is sound; they are left where they are.
            SaveFailed: A save was under way and could not be written.
        """
        self.wait()
        wanted = describe(like)
        first = jax.process_index() == 0
        found = together(lambda: self._newest(wanted) if first else None)
        step = int(multihost_utils.broadcast_one_to_all(np.int32(found[0].step if found else -1)))
        if step < 0:
            return None
        manifest, arrays = together(lambda: found or _read(self._folders.path(step), wanted))
        state = jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted])
        return Restored(manifest.step, state, manifest.facts, manifest.config)

    def _finish(self) -> None:
        if self._pending is not None:
            error = self._pending.exception()
            self._pending = None
            if error is not None:
                raise error

    def _newest(self, wanted: Mapping[str, Leaf]) -> tuple[Manifest, dict[str, np.ndarray]] | None:
        bad: dict[Path, str] = {}
        for step in reversed(self._folders.all()):
            path = self._folders.path(step)
            try:
                found = _read(path, wanted)
            except (CorruptFile, OSError) as error:
                if path.exists():  # not one that the run has deleted meanwhile
                    bad[path] = str(error)
                continue
            for worse, reason in bad.items():
                self._folders.set_aside(worse, reason)
            return found
        if bad:
            reasons = "".join(f"\n  {path.name}  {reason}" for path, reason in bad.items())
            raise CheckpointCorrupt(
                f"{self._folders.root} has no checkpoint that can be trusted:{reasons}\n"
                "Bring one back from a copy, or move them away to start afresh."
            )
        return None

    def _write(self, step: int, arrays: dict[str, np.ndarray], facts: Mapping[str, JSON]) -> None:
        final = self._folders.path(step)
        temporary = self._folders.hidden(step, "new")
        leaves = {path: manifests.digest(array) for path, array in arrays.items()}
        try:
            self._folders.sweep()
            if final.exists() and self._is_saved(final, leaves):
                return
            temporary.mkdir()
            _write_arrays(temporary / "arrays", arrays)
            files = manifests.digest_files(temporary)
            versions = {name: version(name) for name in _LIBRARIES}
            manifest = Manifest(step, self._config, facts, leaves, files, versions)
            for path in temporary.rglob("*"):
                _sync(path)
            manifests.write(temporary, manifest)
            _sync(temporary)
            _read(temporary, leaves, step=step)
            temporary.rename(final)
            _sync(self._folders.root)
        except Exception as error:  # Orbax raises whatever TensorStore does
            reason = str(error).partition(" [tensorstore_spec=")[0]
            raise SaveFailed(
                f"step {step} was not saved in {self._folders.root}: {reason}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune(step)

    def _is_saved(self, path: Path, leaves: Mapping[str, Leaf]) -> bool:
        try:
            _read(path, leaves)
        except (CorruptFile, OSError) as error:
            self._folders.set_aside(path, str(error))
            return False
        except ConfigError as error:
            raise SaveFailed("the step is there with another state: of another run?") from error
        return True

    def _prune(self, saved: int) -> None:
        for step in self._folders.complete()[: -self._keep]:
            if step != saved:
                self._folders.delete(step)


def _as_json(facts: Mapping[str, JSON]) -> dict[str, JSON]:
    try:
        return json.loads(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"facts must be JSON: {error}") from error


def _write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    stored = {path: array for path, array in arrays.items() if array.size}  # Orbax takes no other
    if stored:
        with closing(_orbax()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(stored))


def _read(
    folder: Path, wanted: Mapping[str, Leaf], *, step: int | None = None
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Reads and verifies a step.

    Raises:
        CorruptFile: It is not what was written.
        OSError: It cannot be read.
        ConfigError: It is what was written, but not what is wanted.
    """
    manifest = manifests.read(folder)
    if manifest.step != (int(folder.name) if step is None else step):
        raise CorruptFile(f"it is step {manifest.step} by its manifest")
    if lines := differences(wanted, manifest.leaves):
        raise ConfigError(f"{folder} holds another state than the one to restore:\n{lines}")
    manifests.check_files(folder, manifest.files)
    empty = {
        path: np.empty(leaf.shape, leaf.dtype)
        for path, leaf in manifest.leaves.items()
        if 0 in leaf.shape
    }
    stored = {
        path: ocp.RestoreArgs(restore_type=np.ndarray) for path in manifest.leaves.keys() - empty
    }
    arrays: dict[str, np.ndarray] = dict(empty)
    if stored:
        with closing(_orbax()) as checkpointer:
            try:
                arrays |= checkpointer.restore(
                    folder / "arrays", args=ocp.args.PyTreeRestore(restore_args=stored)
                )
            except (ValueError, KeyError) as error:  # TensorStore's and Orbax's for bad content
                raise CorruptFile(f"Orbax cannot read it: {error!s:.300}") from error
    for path, leaf in manifest.leaves.items():
        if path not in arrays or manifests.digest(arrays[path]) != leaf:
            raise CorruptFile(f"{path} does not hold the values that were saved")
    return manifest, arrays


def _orbax() -> ocp.Checkpointer:
    """A checkpointer that waits for no other process."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    # Compression takes 8 % off random float32 values and makes reading twice as slow.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _sync(path: Path) -> None:
    """Has a file's content, or a folder's list of names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
