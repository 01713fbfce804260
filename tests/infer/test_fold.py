"""Folding batch norm into convolutions leaves the function as it was, in every family."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.errors import ConfigError
from resnetjax.infer.fold import fold
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from tests.cut import cut

# The others run with the slow tests.
QUICK = {"keras_resnet50v2"}


def small(config: rj.ResNetConfig) -> rj.ResNetConfig:
    """The net's first two stages, of one and two blocks, narrower where channels still divide."""
    per_stage = ("widths", "strides", "dilations", "projections", "block")
    fields = {name: getattr(config, name) for name in per_stage}
    two = {name: value[:2] for name, value in fields.items() if isinstance(value, tuple)}
    config = cut(config, (1, 2), **two, output_stride=None, num_classes=10)
    narrow: dict[str, object] = {"widths": tuple(width // 4 for width in config.widths)}
    if config.stem == "conv7":
        narrow["stem_width"] = config.stem_width // 4
    try:
        narrowed = config.replace(**narrow)
        plan(narrowed)
    except ConfigError:
        return config
    return narrowed


NETS: dict[rj.ResNetConfig, str] = {}
for _name in sorted(ARCHITECTURES, key=lambda name: (name not in QUICK, name)):
    NETS.setdefault(small(ARCHITECTURES[_name]), _name)
CASES = [
    pytest.param(config, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
    for config, name in NETS.items()
]


def drawn(config: rj.ResNetConfig, least_var: float, most_var: float):
    """A net with running statistics that are no defaults, and biases that are not zero."""
    rng = np.random.default_rng(0)
    arrays = {}
    for path, leaf in leaves(plan(config)).items():
        match leaf.kind:
            case "var":
                drawing = np.exp(rng.uniform(np.log(least_var), np.log(most_var), leaf.shape))
            case "mean" | "bias":
                drawing = rng.normal(size=leaf.shape) / 2
            case "scale":
                drawing = rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1, 1], leaf.shape)
            case _:
                fan_in = max(np.prod(leaf.shape[:-1]), 1)
                drawing = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        arrays[leaf.collection, *path.split("/")] = drawing.astype(np.float32)
    return rj.ResNet(config), flax.traverse_util.unflatten_dict(arrays)


def logits(model: rj.ResNet, variables, images: np.ndarray) -> np.ndarray:
    """In float64, where what differs is the folded arrays' rounding alone."""
    # Not under jit: nets share most of their operations, and these compile once for all.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        return np.asarray(model.clone(dtype=jnp.float64).apply(wide, jnp.asarray(images)))


@pytest.mark.parametrize("config", CASES)
def test_the_folded_net_gives_the_same_logits(config):
    # From variances of the epsilons' size to 3.
    model, variables = drawn(config, 1e-6, 3.0)
    edge = 8 if config.stem == "conv3" else 24
    images = np.random.default_rng(1).normal(size=(2, edge, edge + 1, config.in_channels))
    expected = logits(model, variables, images)
    found = logits(*fold(model, variables), images)
    # float32 keeps seven digits of the folded arrays.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.std())


@pytest.mark.parametrize("config", CASES)
def test_the_folded_net_has_no_statistics_and_no_norm_behind_a_convolution(config):
    model, variables = drawn(config, 0.3, 3.0)
    _, arrays = fold(model, variables)
    assert set(arrays) == {"params"}
    paths = flax.traverse_util.flatten_dict(arrays["params"], sep="/")
    norms = {path.rpartition("/")[0] for path in paths if path.endswith("/scale")}
    if config.norm == "group":
        given = flax.traverse_util.flatten_dict(variables["params"], sep="/")
        assert set(paths) == set(given)
    elif config.order == "post":
        assert not norms
    else:
        blocks = [f"stage{s + 1}_block{b + 1}" for s, n in enumerate(config.depths)
                  for b in range(n)]  # fmt: skip
        assert norms == {"norm", *(f"{block}/norm1" for block in blocks)}


def test_a_folded_net_folds_to_itself():
    once = fold(*drawn(small(ARCHITECTURES["resnetv2_50"]), 0.3, 3.0))
    twice = fold(*once)
    assert twice[0] == once[0]
    jax.tree.map(np.testing.assert_array_equal, twice[1], once[1])


def test_one_folded_convolution_is_what_arithmetic_by_hand_gives():
    config = rj.ResNetConfig(
        block="basic", depths=(1,), widths=(2,), strides=(1,), dilations=(1,), stem="conv3",
        stem_width=2, stem_pool="none", num_classes=2, norm_eps=1.0, conv_bias=("stem",),
    )  # fmt: skip
    model, variables = drawn(config, 0.3, 3.0)
    stem = variables["params"]["stem"]
    stem["norm1"] = {"scale": np.float32([2, 6]), "bias": np.float32([1, -1])}
    stem["conv1"]["bias"] = np.float32([3, 5])
    statistics = {"mean": np.float32([1, 2]), "var": np.float32([3, 8])}
    variables["batch_stats"]["stem"]["norm1"] = statistics
    found = fold(model, variables)[1]["params"]["stem"]["conv1"]
    # 2 / sqrt(3 + 1) = 1 and 6 / sqrt(8 + 1) = 2; 1 + (3 - 1) * 1 and -1 + (5 - 2) * 2
    np.testing.assert_array_equal(found["bias"], np.float32([3, 5]))
    np.testing.assert_array_equal(found["kernel"], stem["conv1"]["kernel"] * np.float32([1, 2]))


def test_a_folded_net_gives_the_features_too():
    model, variables = drawn(small(ARCHITECTURES["resnet50"]), 0.3, 3.0)
    folded, arrays = fold(model, variables)
    pre, images = rj.Pretrained(model=model, variables=variables), jnp.ones((1, 32, 32, 3))
    expected = rj.features(pre, images)
    found = rj.features(dataclasses.replace(pre, model=folded, variables=arrays), images)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-4)
