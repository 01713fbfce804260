"""Files that stay open between reads: opened lazily, by each process for itself, not too many."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from resnetjax.errors import CorruptFile

T = TypeVar("T")

MAX_OPEN = 256  # a quarter of the usual limit of descriptors, which is 1024


class OpenFiles(Generic[T]):
    """What `opener` makes of each path, kept for the most recently used.

    Safe to use from several threads. A forked or unpickled copy starts with nothing open. What is
    dropped is closed by its finalizer, once no thread reads from it.

    Args:
        paths: The files; they are named by their position.
        opener: Gives an object to read from; a class or a function of a module, to be pickled.
    """

    def __init__(self, paths: Sequence[Path], opener: Callable[[Path], T]) -> None:
        self.paths = tuple(paths)
        self._opener = opener
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, number: int) -> T:
        if self._process != os.getpid():
            self._start()
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
            else:
                self._open[number] = self._opener(self.paths[number])
                if len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
            return self._open[number]

    def __getstate__(self) -> Any:
        return self.paths, self._opener

    def __setstate__(self, state: Any) -> None:
        self.paths, self._opener = state
        self._start()


class ByteFile:
    """A file that is read by position, so that threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """The bytes from `start` on.

        Raises:
            CorruptFile: The file ends before, or cannot be read there.
        """
        parts, position = [], start
        try:
            while position < start + size:
                part = os.pread(self._descriptor, start + size - position, position)
                if not part:
                    raise CorruptFile(
                        f"{self.path}: {size} bytes were expected at offset {start}, "
                        f"where {position - start} are"
                    )
                parts.append(part)
                position += len(part)
        except OSError as error:
            raise CorruptFile(f"{self.path}: offset {position}: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
