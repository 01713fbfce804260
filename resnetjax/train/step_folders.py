"""The folders that hold a run's checkpoints: which step is where, and what is out of the way."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from resnetjax.train import manifest as manifests

_STEP = re.compile(r"\d{8,}")
_LEFTOVER = re.compile(r"\.\d{8,}\.(new|old)-\d+")


class StepFolders:
    """One folder such as `00001234` for each step; hidden ones are being written or deleted.

    Args:
        root: Where they are; it need not be there yet.
        log: Called with a line for each folder set aside, and for what cannot be moved.
    """

    def __init__(self, root: Path, *, log: Callable[[str], None]):
        self.root = Path(os.path.abspath(root))  # Orbax takes no relative path
        self._log = log

    def path(self, step: int) -> Path:
        """Where a step is once it is complete."""
        return self.root / f"{step:08d}"

    def hidden(self, step: int, kind: str) -> Path:
        """Where a step is while it is written (`new`) or deleted (`old`)."""
        return self.root / f".{step:08d}.{kind}-{os.getpid()}"

    def complete(self) -> tuple[int, ...]:
        """The steps with a manifest, oldest first."""
        return tuple(step for step in self.all() if (self.path(step) / manifests.NAME).is_file())

    def all(self) -> tuple[int, ...]:
        """The steps with anything in their folder, oldest first."""
        if not self.root.is_dir():
            return ()
        steps = (int(path.name) for path in self.root.iterdir() if _STEP.fullmatch(path.name))
        folders = {step: self.path(step) for step in sorted(steps)}  # 000000002 is no step
        return tuple(s for s, path in folders.items() if path.is_dir() and any(path.iterdir()))

    def sweep(self) -> None:
        """Makes the root and removes what a killed run, or a failed save, left unfinished."""
        self.root.mkdir(parents=True, exist_ok=True)
        # Before every save: after a failed one, TensorStore may still finish other files.
        for path in self.root.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)

    def delete(self, step: int) -> None:
        """Deletes a step, which stops being one before the first of its files goes."""
        try:
            self.path(step).rename(self.hidden(step, "old"))
            shutil.rmtree(self.hidden(step, "old"))
        except OSError as error:
            self._log(f"{self.path(step)} could not be deleted: {error}")

    def set_aside(self, path: Path, reason: str) -> None:
        """Renames a bad step to a name that is free: `00001234.bad`, `00001234.bad2` and so on."""
        aside, number = path.with_name(f"{path.name}.bad"), 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.bad{number}")
        try:
            path.rename(aside)
            self._log(f"{path} is set aside as {aside.name}: {reason}")
        except OSError as error:
            self._log(f"{path} is passed over: {reason}; it cannot be renamed: {error}")
