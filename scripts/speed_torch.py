"""Peers of `scripts/benchmark.py infer` and `train` whose nets are PyTorch's."""

import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from speed_cases import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Case, Ready

ROOT = Path(__file__).parent.parent


def start_torch(case: Case, *, form: str = "eager") -> None:
    """Imports PyTorch with its nets, and multiplies two matrices, compiled where it will be."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
    import torch
    import torchvision_shim

    torchvision_shim.install()
    from tests.parity import nets  # noqa: F401 - with torchvision and timm

    torch.backends.cudnn.benchmark = True  # sizes stay, as they do for XLA, which tries as well
    multiply = torch.compile(torch.matmul) if form == "compile" else torch.matmul
    multiply(*[torch.ones((8, 8), device="cuda" if case.gpu else "cpu")] * 2)


def make_torch(case: Case, *, form: Literal["eager", "channels_last", "compile"]) -> Ready:
    """PyTorch as it comes; with channels last; and that compiled by `torch.compile`."""
    import torch

    device = "cuda" if case.gpu else "cpu"
    compiling = "first call" if form == "compile" else None
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    model = _torch_model(case).to(device=device, memory_format=layout)
    images = torch.from_numpy(case.images().transpose(0, 3, 1, 2).copy())
    images = images.to(device=device, memory_format=layout)
    precision = (
        torch.autocast(device, torch.bfloat16)
        if case.dtype == "bfloat16"
        else contextlib.nullcontext()
    )
    if case.kind == "infer":
        forward = torch.compile(model.eval()) if form == "compile" else model.eval()

        def infer() -> None:
            with torch.inference_mode(), precision:
                forward(images)
            _synchronize(torch, device)

        return Ready(infer, compiling)
    labels = torch.from_numpy(case.labels()).to(device)
    forward = torch.compile(model.train()) if form == "compile" else model.train()
    sgd = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )

    def train() -> None:
        sgd.zero_grad(set_to_none=True)
        with precision:
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        sgd.step()
        _synchronize(torch, device)

    return Ready(train, compiling)


def _synchronize(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _torch_model(case: Case) -> Any:
    from tests.parity import nets

    library, name, arguments = case.names.torch
    return nets.build(library, name, arguments, ())


def start_onnxruntime(case: Case) -> None:
    """Imports ONNX Runtime."""
    import onnxruntime  # noqa: F401


def make_onnxruntime(case: Case) -> Ready:
    """What PyTorch exports; making the session counts as compiling."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        _apart(_write_onnx, case, path)
        start = time.perf_counter()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        compile_s = time.perf_counter() - start
    feed = {session.get_inputs()[0].name: _planes(case)}
    return Ready(lambda: session.run(None, feed), compile_s)


def _write_onnx(case: Case, path: Path) -> None:
    start_torch(case)
    import torch

    images = torch.from_numpy(_planes(case))
    program = torch.onnx.export(_torch_model(case).eval(), (images,), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)


def start_openvino(case: Case) -> None:
    """Imports OpenVINO and loads its plugins."""
    import openvino

    openvino.Core().available_devices  # noqa: B018 - loads the plugins


def make_openvino(case: Case) -> Ready:
    """What it converts of PyTorch's net, compiled in float32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.xml"
        _apart(_write_openvino, case, path)
        start = time.perf_counter()
        # Its own default rounds to bfloat16 where the processor can.
        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        compile_s = time.perf_counter() - start
    images = _planes(case)
    return Ready(lambda: compiled(images), compile_s)


def _write_openvino(case: Case, path: Path) -> None:
    start_torch(case)
    import openvino
    import torch

    images = _planes(case)
    model = openvino.convert_model(
        _torch_model(case).eval(), example_input=torch.from_numpy(images), input=images.shape
    )
    openvino.save_model(model, path, compress_to_fp16=False)


def _planes(case: Case) -> np.ndarray:
    return np.ascontiguousarray(case.images().transpose(0, 3, 1, 2))


def _apart(work: Callable[..., None], *arguments: Any) -> None:
    """Runs it in another process, for the memory it takes not to count as this one's."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} failed: its error is above")
