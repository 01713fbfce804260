"""What `scripts/benchmark.py infer` and `train` compare: each peer a line of PEERS.

A peer makes, for a case, a function that runs one batch or one training step and returns when the
device is done. Each is made in a process of its own (speed_sides.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import speed_jax
import speed_torch
from speed_cases import Case, Ready


@dataclass(frozen=True)
class Peer:
    """A library and how it is used.

    Attributes:
        start: Imports it and has it compile and run something small.
        make: What is timed, for a case.
        packages: All have to be installed.
        kinds: What it can do.
        needs: The field of `Net` that has to be there.
        on_gpu: Whether it runs there as well.
        full_only: Whether the default grid leaves it out.
    """

    start: Callable[[Case], Any]
    make: Callable[[Case], Ready]
    packages: tuple[str, ...]
    kinds: tuple[str, ...] = ("infer", "train")
    needs: str = "ours"
    on_gpu: bool = True
    full_only: bool = False


PEERS = {
    "resnetjax": Peer(speed_jax.start_jax, speed_jax.make_resnetjax, ("jax",)),
    "plain Flax": Peer(speed_jax.start_jax, speed_jax.make_plain_flax, ("flax",), needs="plain"),
    "PyTorch": Peer(speed_torch.start_torch, partial(speed_torch.make_torch, form="eager"),
                    ("torch",)),
    "PyTorch channels_last": Peer(speed_torch.start_torch,
                                  partial(speed_torch.make_torch, form="channels_last"),
                                  ("torch",)),
    "torch.compile": Peer(partial(speed_torch.start_torch, form="compile"),
                          partial(speed_torch.make_torch, form="compile"), ("torch",)),
    "Keras on JAX": Peer(speed_jax.start_keras, speed_jax.make_keras, ("keras",),
                         needs="keras", full_only=True),
    "ONNX Runtime": Peer(speed_torch.start_onnxruntime, speed_torch.make_onnxruntime,
                         ("onnxruntime", "onnxscript", "torch"), ("infer",), on_gpu=False),
    "OpenVINO": Peer(speed_torch.start_openvino, speed_torch.make_openvino,
                     ("openvino", "torch"), ("infer",), on_gpu=False),
}  # fmt: skip
