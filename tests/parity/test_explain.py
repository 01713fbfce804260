"""Grad-CAM beside its formula, written plainly in PyTorch on a torchvision net."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

import resnetjax as rj
from resnetjax.errors import AssumptionWarning
from tests.parity import engine, torch_side

pytestmark = pytest.mark.parity

EDGE_PX = 160
TOLERANCE = 1e-6  # of the largest value: the weights are float32


@pytest.fixture(scope="module")
def photograph(samples):
    if samples:
        return Image.open(samples[1]).convert("RGB")
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((400, 300))


@pytest.fixture(scope="module")
def nets(samples, tmp_path_factory):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    pictures = engine.pictures(samples, (EDGE_PX, EDGE_PX), 3)
    torch_side.settle(model, torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    path = tmp_path_factory.mktemp("net") / "net.pth"
    torch.save(model.state_dict(), path)
    small = rj.Preprocess(crop_px=(EDGE_PX, EDGE_PX), resize_px=EDGE_PX + 20)
    # In float64: a single ReLU that float32's rounding turns over changes what comes before it by a
    # third of a percent.
    with pytest.warns(AssumptionWarning):
        return model.double(), rj.load(path, preprocess=small, dtype=jnp.float64)


def grad_cam(model: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor, label: int):
    """Selvaraju et al. 2017, equations 1 and 2: alpha, and the ReLU of the weighted maps."""
    kept = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(x)
    hook.remove()
    (grads,) = torch.autograd.grad(logits[0, label], kept[0])
    alpha = grads.mean((2, 3), keepdim=True)
    return functional.relu((alpha * kept[0]).sum(1))[0].detach().numpy()


@pytest.mark.parametrize("label", [None, 3])
@pytest.mark.parametrize("stage", ["stage4", "stage3", "stage2", "stage1"])
def test_the_heat_is_that_of_the_formula_in_pytorch(nets, photograph, stage, label):
    model, pre = nets
    steps = [
        v2.Resize(EDGE_PX + 20), v2.CenterCrop(EDGE_PX), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]  # fmt: skip
    x = v2.Compose(steps)(photograph)[None].double()
    with torch.no_grad():
        likeliest = int(model(x).argmax())
    with jax.enable_x64(True):
        found = rj.explain(pre, photograph, label=label, stage=stage)
    assert found.prediction.index == (likeliest if label is None else label)
    expected = grad_cam(model, getattr(model, stage.replace("stage", "layer")), x,
                        found.prediction.index)  # fmt: skip
    assert found.heat.shape == expected.shape
    assert expected.max() > 0
    np.testing.assert_allclose(found.heat, expected, rtol=0, atol=TOLERANCE * expected.max())


def test_in_float32_it_is_as_near_as_roundings_let_it_be(nets, photograph):
    _, pre = nets
    single = dataclasses.replace(pre, model=pre.model.clone(dtype=jnp.float32))
    for stage in ("stage4", "stage1"):
        found = rj.explain(single, photograph, label=3, stage=stage).heat
        with jax.enable_x64(True):
            exact = rj.explain(pre, photograph, label=3, stage=stage).heat
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() < 0.02 * exact.max()
