"""Nets of jax-resnet and flaxmodels: what they compute we compute, in the files that they have."""

from typing import Any

import flaxmodels
import jax
import jax.numpy as jnp
import jax_resnet
import numpy as np
import pytest
from flax import serialization

import resnetjax as rj
from resnetjax.errors import AssumptionWarning
from resnetjax.presets import get
from tests.disturbed import disturb, disturbed, spread_error, varied_images

pytestmark = pytest.mark.parity

# Of the spread max|f(x_i) - mean f|; both sides compute in float32.
TOLERANCE = 1e-4
# Where the shortcuts average, jax-resnet has no net for odd maps.
EVEN, ODD = (64, 96), (65, 97)

NETS: dict[str, tuple[Any, str]] = {
    "jax_resnet ResNet18": (jax_resnet.ResNet18(n_classes=1000), "resnet18"),
    "jax_resnet ResNetD18": (jax_resnet.ResNetD18(n_classes=1000), "resnet18d"),
    "jax_resnet ResNet50": (jax_resnet.ResNet50(n_classes=1000), "resnet50"),
    "jax_resnet ResNetD50": (jax_resnet.ResNetD50(n_classes=1000), "resnet50d"),
    "jax_resnet ResNeXt50": (jax_resnet.ResNeXt50(n_classes=1000), "resnext50_32x4d"),
    "jax_resnet WideResNet50": (jax_resnet.WideResNet50(n_classes=1000), "wide_resnet50_2"),
    **{
        f"flaxmodels {name}": (
            getattr(flaxmodels, name)(output="logits", pretrained=None, normalize=False),
            name.lower(),
        )
        for name in ("ResNet18", "ResNet50")
    },
}


@pytest.fixture(autouse=True)
def broadcasting():
    """Broadcasts of unequal rank as JAX does by default: flaxmodels' norms need them."""
    with jax.numpy_rank_promotion("allow"):
        yield


def computed(model: Any, variables: Any, images: np.ndarray) -> np.ndarray:
    options = {"train": False} if type(model).__module__.startswith("flaxmodels") else {}
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, **options))(variables, images))


@pytest.mark.parametrize(
    "net", [pytest.param(x, marks=[] if "18" in x else pytest.mark.slow) for x in NETS]
)
def test_the_variables_of_a_net_are_read_computed_and_written_back(net, tmp_path):
    model, arch = NETS[net]
    image = jax.ShapeDtypeStruct((1, *EVEN, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = jax.tree_util.tree_map_with_path(disturb, shapes)
    (tmp_path / "net.msgpack").write_bytes(serialization.to_bytes(variables))
    with pytest.warns(AssumptionWarning):
        pre = rj.load(tmp_path / "net.msgpack")
    assert pre.source.arch == arch
    for size in (EVEN,) if "ResNetD" in net else (EVEN, ODD):
        expected = computed(model, variables, varied_images(3, *size))
        found = jax.jit(pre.model.apply)(pre.variables, varied_images(3, *size))
        assert spread_error(found, expected) < TOLERANCE
    rj.save(pre, tmp_path / "back.msgpack", dialect=pre.source.dialect)
    back = serialization.from_bytes(variables, (tmp_path / "back.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize("name", ["ResNet18", pytest.param("ResNet50", marks=pytest.mark.slow)])
def test_flaxmodels_opens_our_file_in_place_of_a_published_one(name, tmp_path):
    pre = disturbed(get(name.lower()))
    place = tmp_path / "flaxmodels" / f"{name.lower()}_weights.h5"
    place.parent.mkdir()
    rj.save(pre, place, dialect="flaxmodels")
    images = varied_images(3, *EVEN)
    model = getattr(flaxmodels, name)(output="logits", normalize=False, ckpt_dir=str(tmp_path))
    # It takes the file's arrays as initial values.
    variables = model.init(jax.random.key(0), images, train=False)
    expected = computed(model, variables, images)
    with pytest.warns(AssumptionWarning):
        again = rj.load(place)
    assert (again.source.dialect, again.source.arch) == ("flaxmodels", name.lower())
    assert spread_error(jax.jit(again.model.apply)(again.variables, images), expected) < TOLERANCE
