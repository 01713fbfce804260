"""What the comparisons ask of TensorFlow, in a process of its own: `tf_keras`, KerasCV and slim.

Reads one JSON object a line and answers one. `make` builds a net, settles it on `images.npy` of
the folder, writes what it computes to `outputs.npz` there, and saves it. `differences` has the
framework read a file of ours into that net, strictly, and says which arrays are others.
"""

import json
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # so that KerasCV's Keras is tf_keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras

from tests.parity import keras_nets, slim_nets

_made: dict[str, Any] = {}  # the last net, by what it was asked for


def make(job: dict[str, Any]) -> str:
    """The path that the net was saved in."""
    folder = Path(job["folder"])
    net, outputs = _net(job)
    np.savez(folder / "outputs.npz", **outputs)
    if isinstance(net, slim_nets.Net):
        return str(net.save(job["layout"], folder))
    return str(keras_nets.save(net, job["layout"], folder))


def differences(job: dict[str, Any]) -> list[str]:
    """The arrays that are others in a file of ours."""
    (net, _), saved = _net(job), Path(job["saved"])
    if isinstance(net, slim_nets.Net):
        return net.differences(saved)
    return keras_nets.differences(tf_keras, net, saved, whole=job["whole"])


def _net(job: dict[str, Any]) -> tuple[Any, keras_nets.Outputs]:
    """The net and what it computes; the last one is kept, for its other files."""
    images = np.load(Path(job["folder"]) / "images.npy")
    asked = [job[name] for name in ("framework", "net", "arguments", "depths", "widths")]
    key = json.dumps([*asked, images.shape])
    if key not in _made:
        _made.clear()
        _made[key] = _slim(job, images) if job["framework"] == "slim" else _keras(job, images)
    return _made[key]


def _slim(job: dict[str, Any], images: np.ndarray) -> tuple[Any, keras_nets.Outputs]:
    net = slim_nets.Net(job["net"], job["arguments"], job["depths"], job["widths"], images)
    return net, net.run(images)


def _keras(job: dict[str, Any], images: np.ndarray) -> tuple[Any, keras_nets.Outputs]:
    names = ("framework", "net", "arguments", "depths", "widths")
    model = keras_nets.build(tf_keras, *(job[name] for name in names))
    if job["arguments"].get("include_rescaling"):
        images = images * np.float32(255)
    keras_nets.settle(tf_keras, model, images)
    return model, keras_nets.run(tf_keras, model, images)


def main() -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    tf.config.threading.set_intra_op_parallelism_threads(2)
    versions = {
        "tensorflow": tf.__version__,
        **{name: version(name) for name in ("tf_keras", "keras-cv", "tf-slim")},
    }
    print(json.dumps(versions), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"answer": {"make": make, "differences": differences}[job["do"]](job)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
