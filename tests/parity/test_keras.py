"""Keras's own nets and ours: what it saves we load, what we save it loads."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import keras.src.applications.resnet as applications
import keras_hub
import numpy as np
import pytest

import resnetjax as rj
from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.data.preprocess import normalize, preprocess
from resnetjax.errors import AssumptionWarning, ConfigError, WeightsMismatch
from resnetjax.presets import get
from resnetjax.weights import dialects
from tests.disturbed import disturbed, spread_error, varied_images

pytestmark = [
    pytest.mark.parity,
    # Of Keras and PyTorch: the legacy format, and arrays that are not writable.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

CLASSES, EDGE_PX = 11, 65
TOLERANCE = 1e-4  # of the spread of the logits over the images
MODEL_TOLERANCE = 1e-5  # likewise, where Keras computes both


def application(*, pre: bool) -> keras.Model:
    """keras.applications' builder, on a net of narrow stages."""
    stack = getattr(applications, f"stack_residual_blocks_v{2 if pre else 1}")

    def stages(x: object) -> object:
        x = stack(x, 8, 2, name="conv2", **({} if pre else {"stride1": 1}))
        x = stack(x, 16, 3, name="conv3")
        x = stack(x, 24, 2, name="conv4")
        return stack(x, 32, 2, name="conv5", **({"stride1": 1} if pre else {}))

    return applications.ResNet(
        stages,
        preact=pre,
        use_bias=True,
        weights=None,
        input_shape=(EDGE_PX, EDGE_PX, 3),
        classes=CLASSES,
        classifier_activation=None,
    )


def hub(block_type: str, *, pre: bool = False, deep: bool = False) -> keras.Model:
    """KerasHub's classifier, on a backbone of narrow stages."""
    deep = deep or block_type.endswith("vd")
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[32, 32, 64] if deep else [64],
        input_conv_kernel_sizes=[3, 3, 3] if deep else [7],
        stackwise_num_filters=[64, 16, 24, 32],
        stackwise_num_blocks=[2, 1, 2, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block_type,
        use_pre_activation=pre,
        image_shape=(EDGE_PX, EDGE_PX, 3),
    )
    return keras_hub.models.ImageClassifier(backbone=backbone, num_classes=CLASSES)


NETS: dict[str, tuple[str, Callable[[], keras.Model]]] = {
    "applications v1": ("keras", lambda: application(pre=False)),
    "applications v2": ("keras_v2", lambda: application(pre=True)),
    "hub basic": ("kerashub", lambda: hub("basic_block")),
    "hub bottleneck": ("kerashub", lambda: hub("bottleneck_block")),
    "hub v2 basic": ("kerashub", lambda: hub("basic_block", pre=True)),
    "hub v2 bottleneck": ("kerashub", lambda: hub("bottleneck_block", pre=True)),
    "hub v2 deep": ("kerashub", lambda: hub("bottleneck_block", pre=True, deep=True)),
    "hub vd basic": ("kerashub", lambda: hub("basic_block_vd")),
    "hub vd bottleneck": ("kerashub", lambda: hub("bottleneck_block_vd")),
}


def layers(model: keras.Model) -> list[keras.Layer]:
    """Those with weights, of the backbone too."""
    inner = getattr(model, "backbone", None)
    own = [layer for layer in model.layers if layer is not inner and layer.weights]
    return own + ([layer for layer in inner.layers if layer.weights] if inner else [])


def fill(model: keras.Model) -> None:
    """Random values; half of the variances are of epsilon's size, and scales fit them."""
    rng = np.random.default_rng(0)
    for layer in layers(model):
        values = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            size = values[0].shape
            var = rng.uniform(0.05, 2, size) * np.where(rng.random(size) < 0.5, 1e-5, 1)
            scale = rng.uniform(0.5, 1.5, size) * np.sqrt(var + 1e-5)
            values = [scale, rng.uniform(-0.5, 0.5, size), rng.uniform(-0.5, 0.5, size), var]
        else:
            values[1:] = [rng.uniform(-0.1, 0.1, bias.shape) for bias in values[1:]]
        layer.set_weights(values)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return varied_images(4, EDGE_PX, EDGE_PX)


@pytest.fixture(scope="module", params=NETS)
def saved(request, images, tmp_path_factory):
    dialect, build = NETS[request.param]
    model = build()
    fill(model)
    folder = tmp_path_factory.mktemp("keras")
    model.save_weights(folder / "net.weights.h5")
    for ending in (".h5", ".keras"):
        model.save(folder / f"net{ending}")
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    return dialect, build, model, logits, folder


def load(path, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        return rj.load(path, **changes)


def logits_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))


def resaved(folder: Path, dialect: str, **changes) -> keras.Model:
    """What Keras loads of what we save of what Keras saved."""
    rj.save(load(folder / "net.keras", **changes), folder / "ours.keras", dialect=dialect)
    return keras.models.load_model(folder / "ours.keras")


def test_keras_loads_the_models_that_we_save_and_computes_its_logits(saved, images):
    dialect, _, model, logits, folder = saved
    loaded = resaved(folder, dialect)
    assert isinstance(
        loaded, keras_hub.models.ImageClassifier if dialect == "kerashub" else type(model)
    )
    assert spread_error(logits_of(loaded, images), logits) < MODEL_TOLERANCE
    again = load(folder / "ours.keras")  # its layers say what the net is
    assert (again.source.dialect, again.config) == (dialect, load(folder / "net.keras").config)


def test_our_models_have_the_layers_of_keras_own(saved):
    dialect, _, model, _, folder = saved
    nets = [getattr(net, "backbone", net) for net in (resaved(folder, dialect), model)]
    # Layers without a name are numbered through the whole process.
    ours, theirs = ([(type(x), re.sub(r"_\d+$", "", x.name)) for x in net.layers] for net in nets)
    assert ours == theirs


def test_a_model_without_a_head_gives_pooled_features(saved, images):
    dialect, _, model, _, folder = saved
    loaded = resaved(folder, dialect, num_classes=0)
    if dialect == "kerashub":
        assert isinstance(loaded, keras_hub.models.ResNetBackbone)
        found = logits_of(loaded, images).mean((1, 2))
        expected = logits_of(model.backbone, images).mean((1, 2))
    else:
        features = keras.Model(model.inputs, model.get_layer("avg_pool").output)
        found, expected = (logits_of(net, images) for net in (loaded, features))
    assert spread_error(found, expected) < MODEL_TOLERANCE


@pytest.mark.parametrize(
    "name",
    ["keras_resnet50", "keras_resnet50v2", "kerascv_resnet18", "kerascv_resnet50v2",
     "kerascv_resnet18v2", "mlperf_tiny_resnet8"],
)  # fmt: skip
def test_keras_computes_our_logits_from_models_of_every_family(name, tmp_path):
    config = get(name)
    dialect = {"kera": "keras", "mlpe": "keras_numbered"}[name[:4]]
    if name.startswith("kerascv"):
        dialect = "kerascv"
    dialect += "_v2" if name.endswith("v2") else ""
    prepared = dialects.get(dialect).preprocess
    pre = disturbed(config, preprocess=prepared)
    rj.save(pre, tmp_path / "net.keras", dialect=dialect)
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert type(loaded).__name__ == "Functional"
    for edge_px in (64, 65):  # SAME pads them differently
        images = varied_images(3, edge_px, edge_px)
        ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, jnp.asarray(images)))
        assert spread_error(ours, logits_of(loaded, images)) < TOLERANCE


@pytest.mark.parametrize("classes", [CLASSES, 0])
@pytest.mark.parametrize("saved", [name for name in NETS if name[:3] == "hub"], indirect=True)
def test_kerashub_opens_the_presets_that_we_write(saved, classes, images, tmp_path):
    _, _, model, logits, folder = saved
    prepared = Preprocess(
        crop_px=(40, 60), resize_px=(40, 60), resize_mode="crop_to_aspect_ratio", antialias=False
    )
    changes = {} if classes else {"num_classes": 0}
    pre = load(folder / "net.keras", preprocess=prepared, **changes)
    rj.save(pre, tmp_path / "ours", dialect="kerashub")
    if classes:
        again = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "ours"))
        found, expected = logits_of(again, images), logits
        photos = np.random.default_rng(0).integers(0, 256, (2, 90, 97, 3)).astype(np.uint8)
        theirs = keras.ops.convert_to_numpy(again.preprocessor(photos))
        ours = np.stack([preprocess(photo, prepared) for photo in photos])
        level = 1 / 255 / min(prepared.std) + 1e-5
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=level)
    else:
        again = keras_hub.models.Backbone.from_preset(str(tmp_path / "ours"))
        found, expected = logits_of(again, images), logits_of(model.backbone, images)
    assert spread_error(found, expected) < MODEL_TOLERANCE
    again.save_to_preset(str(tmp_path / "theirs"))
    for path in sorted((tmp_path / "theirs").glob("*.json")):
        values, ours = (
            json.loads((tmp_path / x / path.name).read_text()) for x in ("theirs", "ours")
        )
        values.pop("date_saved", None)
        if path.name == "metadata.json":
            values["keras_version"] = ours["keras_version"]
        assert values == ours
    for side in ("ours", "theirs"):
        back = rj.load(tmp_path / side)
        assert back.config == pre.config
        jax.tree.map(np.testing.assert_array_equal, back.variables, pre.variables)
        if classes or side == "ours":
            for name, value in prepared.to_json().items():
                assert getattr(back.preprocess, name) == pytest.approx(value), name


def test_kerashub_refuses_no_model_that_we_write(tmp_path):
    config = ResNetConfig(depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1))
    with pytest.raises(ConfigError, match=r"widths=\(8, 16\) .*KerasHub has 64 in the first"):
        rj.save(disturbed(config), tmp_path / "net.keras", dialect="kerashub")


def own_net(
    *,
    order: str = "post",
    activation: str = "relu",
    strides: tuple[int, ...] = (1, 2, 2),
    dilations: tuple[int, ...] = (1, 1, 1),
    stem_stride: int = 1,
    pool_px: int = 0,
    head_pool: str = "Average",
) -> keras.Model:
    """A basic net for CIFAR as users write it, of layers without names."""
    keras.backend.clear_session()

    def conv(x, width, kernel=3, stride=1, dilation=1):
        rates = {"strides": stride, "dilation_rate": dilation}
        return keras.layers.Conv2D(width, kernel, padding="same", use_bias=False, **rates)(x)

    def normed(x):
        return keras.layers.BatchNormalization()(x)

    def activated(x):
        return keras.layers.Activation(activation)(x)

    inputs = keras.Input((32, 32, 3))
    x = conv(inputs, 8, stride=stem_stride)
    x = x if order == "pre" else activated(normed(x))
    x = keras.layers.MaxPooling2D(pool_px)(x) if pool_px else x
    for width, stride, dilation in zip((8, 16, 32), strides, dilations, strict=True):
        for first in (True, False):
            shortcut, rate = x, stride if first else 1
            x = activated(normed(x)) if order == "pre" else x
            if first and width > 8:
                shortcut = conv(x, width, 1, rate)
            x = activated(normed(conv(x, width, 3, rate, dilation)))
            x = conv(x, width, 3, 1, dilation)
            x = keras.layers.Add()([x if order == "pre" else normed(x), shortcut])
            x = x if order == "pre" else activated(x)
    x = activated(normed(x)) if order == "pre" else x
    x = getattr(keras.layers, f"Global{head_pool}Pooling2D")()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


@pytest.mark.parametrize("ending", ["h5", "keras"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"order": "pre"}, {"activation": "silu"}, {"head_pool": "Max"}, {"strides": (1, 1, 2)},
     {"strides": (1, 2, 1), "dilations": (1, 1, 2)}],
    ids=str,
)  # fmt: skip
def test_f14_what_a_net_of_unnamed_layers_describes_is_computed(fields, ending, tmp_path):
    model = own_net(**fields)
    fill(model)
    model.save(tmp_path / f"net.{ending}")
    images = varied_images(4, 32, 32)
    with pytest.warns(AssumptionWarning) as said:  # of the images alone
        pre = rj.load(tmp_path / f"net.{ending}")
    assert "architecture" not in str(said[0].message)
    ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, jnp.asarray(images)))
    assert spread_error(ours, logits_of(model, images)) < TOLERANCE


@pytest.mark.parametrize("ending", ["h5", "keras"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activation": "elu"}, r"reads elu\(batch_normalization\), not relu"),
        ({"stem_stride": 2}, "conv2d is a 3x3 convolution of stride 2"),
        ({"pool_px": 2}, "conv2d_1 reads .2x2 max-pool"),
    ],
    ids=str,
)
def test_f14_a_net_of_unnamed_layers_that_no_config_is_is_refused(fields, said, ending, tmp_path):
    model = own_net(**fields)
    model.save(tmp_path / f"net.{ending}")
    with pytest.raises(WeightsMismatch, match=said):
        load(tmp_path / f"net.{ending}")
    own_net().save(tmp_path / "plain.keras")
    config = load(tmp_path / "plain.keras").config
    assert load(tmp_path / f"net.{ending}", config=config).config == config


def transferred(form: str, *hidden: int) -> keras.Model:
    """keras.applications' net of narrow stages without its head, and a user's head."""
    keras.backend.clear_session()
    whole = application(pre=form == "flat v2")
    fill(whole)
    base = keras.Model(whole.input, whole.layers[-3].output)
    layers = [keras.layers.GlobalAveragePooling2D()]
    for width in hidden:
        layers += [keras.layers.Dense(width, activation="relu"), keras.layers.Dropout(0.2)]
    layers.append(keras.layers.Dense(CLASSES))
    if form == "sequential":
        return keras.Sequential([base, keras.layers.GlobalMaxPooling2D(), *layers[1:]])
    if form == "nested":
        inputs = keras.Input((EDGE_PX, EDGE_PX, 3))
        x = base(keras.layers.RandomFlip()(inputs), training=False)
    else:
        inputs, x = base.input, base.output
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("ending", ["h5", "keras", "weights.h5"])
@pytest.mark.parametrize("form", ["flat", "flat v2", "nested", "sequential"])
@pytest.mark.parametrize("hidden", [(), (12, 12)])
def test_a_head_of_ones_own_on_keras_applications_is_found(form, hidden, ending, images, tmp_path):
    model = transferred(form, *hidden)
    path = tmp_path / f"net.{ending}"
    (model.save_weights if ending == "weights.h5" else model.save)(path)
    layers = "dense, dense_1 and dense_2, the dense layers" if hidden else "dense, the only dense"
    with pytest.warns(AssumptionWarning, match=f"{layers}.* taken for the head"):
        pre = rj.load(path)
    assert (pre.config.num_classes, pre.config.head_widths) == (CLASSES, hidden)
    if ending == "weights.h5":  # it tells no pool
        pool = "max" if form == "sequential" else "average"
        pre = load(path, config=pre.config.replace(head_pool=pool))
    ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, jnp.asarray(images)))
    assert spread_error(ours, logits_of(model, images)) < TOLERANCE
    if ending == "keras" and form.startswith("flat"):
        rj.save(pre, tmp_path / "back.keras", dialect=pre.source.dialect)
        back = keras.models.load_model(tmp_path / "back.keras")
        assert spread_error(ours, logits_of(back, images)) < TOLERANCE


SCALES = {
    "Rescaling": lambda: keras.layers.Rescaling(1 / 255, 0.1),
    "Normalization": lambda: keras.layers.Normalization(
        mean=[100.0, 110.0, 120.0], variance=[400.0, 500.0, 600.0]
    ),
}


@pytest.mark.parametrize("ending", ["h5", "keras"])
@pytest.mark.parametrize("kind", SCALES)
def test_layers_before_the_net_say_how_images_are_prepared(kind, ending, tmp_path):
    net = transferred("flat v2")
    inputs = keras.Input((EDGE_PX, EDGE_PX, 3))
    model = keras.Model(inputs, net(SCALES[kind]()(inputs)))
    model.save(tmp_path / f"net.{ending}")
    with pytest.warns(AssumptionWarning, match=f"by keras_v2, and by its own {kind}"):
        pre = rj.load(tmp_path / f"net.{ending}")
    pixels = np.random.default_rng(0).integers(0, 256, (3, EDGE_PX, EDGE_PX, 3)).astype(np.uint8)
    images = jnp.asarray(normalize(pixels, pre.preprocess))
    ours = np.asarray(jax.jit(pre.model.apply)(pre.variables, images))
    assert spread_error(ours, logits_of(model, pixels.astype(np.float32))) < TOLERANCE


def test_other_layers_before_the_net_are_named(tmp_path):
    net = transferred("flat v2")
    inputs = keras.Input((EDGE_PX, EDGE_PX, 3))
    keras.Model(inputs, net(keras.layers.UnitNormalization()(inputs))).save(tmp_path / "net.keras")
    with pytest.warns(AssumptionWarning, match="keras_v2, without its own UnitNormalization"):
        rj.load(tmp_path / "net.keras")


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("ending", ["sigmoid", "linear", "tanh", "softmax"])
def test_what_ends_the_net_makes_its_predictions(ending, classes, tmp_path):
    net = transferred("flat v2")
    pooled = net.layers[-2].output
    output = keras.layers.Dense(classes, activation=ending)(pooled)
    keras.Model(net.input, output).save(tmp_path / "net.keras")
    with pytest.warns(AssumptionWarning) as said:
        pre = rj.load(tmp_path / "net.keras")
    several = "softmax" if ending in ("linear", "softmax") and classes > 1 else "none"
    assert pre.activation == ("sigmoid" if ending == "sigmoid" else several)
    left_out = ending == "tanh" or (ending == "softmax" and classes == 1)
    assert (f"without its {ending}" in str(said[0].message)) == left_out


def test_an_activation_in_the_head_that_is_not_the_nets_is_refused(tmp_path):
    model = transferred("flat", 12)
    model.layers[-3].activation = keras.activations.tanh
    model.save(tmp_path / "net.keras")
    said = r"predictions reads tanh\(hidden1\), not relu\(hidden1\)"
    with pytest.raises(WeightsMismatch, match=said):
        load(tmp_path / "net.keras")
