"""The real nets of tf_keras, KerasCV and slim, in a process of their own: `tf_side.py`."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resnetjax as rj
from tests.parity.keras_nets import Outputs
from tests.parity.keras_side import written_back
from tests.parity.row import Row, Size

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-parity-tf" / "bin" / "python"


def interpreter() -> Path:
    """The Python that has TensorFlow; the test is skipped where there is none."""
    python = Path(os.environ.get("RESNETJAX_PARITY_TF_PYTHON") or PYTHON)
    if not python.is_file():
        missing = (
            f"no Python with TensorFlow: {python} is not there; `make parity` makes one, "
            "$RESNETJAX_PARITY_TF_PYTHON names another"
        )
        if os.environ.get("RESNETJAX_REQUIRE_SHARED"):
            pytest.fail(missing)
        pytest.skip(missing)
    return python


class Process:
    """The other process, started when it is first asked.

    Attributes:
        versions: Of the packages there; empty before the start.
    """

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process

    def ask(self, **job: Any) -> Any:
        """The answer to a job."""
        if self._process is None:
            self._start()
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps(job)}\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            pytest.fail(f"TensorFlow's side, asked to {job['do']}:\n{answer['error']}")
        return answer["answer"]

    def stop(self) -> None:
        """Ends it."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()
        self._log.close()

    def _start(self) -> None:
        # Keras's in this process is PyTorch.
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        self._process = subprocess.Popen(
            [interpreter(), "-m", "tests.parity.tf_side"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.versions = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            pytest.fail(f"TensorFlow's side has ended:\n{self._log.read()[-4000:]}")
        return json.loads(line)


PROCESS = Process()


def make(row: Row, size: Size, images: np.ndarray, folder: Path) -> tuple[None, Outputs, Path]:
    """The row's net, what it computes, and where it is saved."""
    np.save(folder / "images.npy", images)
    path = PROCESS.ask(**_job(row, size), do="make", folder=str(folder))
    with np.load(folder / "outputs.npz") as outputs:
        return None, dict(outputs), Path(path)


def differences(
    row: Row, size: Size, model: None, pretrained: rj.Pretrained, folder: Path
) -> list[str]:
    """The arrays that are others when the framework has read what `rj.save` writes, strictly."""

    def read(saved: Path, whole: bool) -> list[str]:
        job = {**_job(row, size), "folder": str(folder)}
        return PROCESS.ask(**job, do="differences", saved=str(saved), whole=whole)

    return written_back(row, pretrained, folder, read)


def _job(row: Row, size: Size) -> dict[str, Any]:
    return {
        "framework": row.framework,
        "net": row.net,
        "arguments": dict(row.arguments),
        "depths": row.depths(size),
        "widths": row.widths(size),
        "layout": row.layout,
    }
