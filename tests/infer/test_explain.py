"""Grad-CAM, on nets whose maps are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax.errors import BadImage, ConfigError, UnknownName

LABELS = rj.Labels(names=("cat", "dog", "crane", "crane"), ids=("n1", "n2", "n3", "n4"))
CONFIG = rj.ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), stem="conv3",
    stem_width=8, stem_pool="none", num_classes=4,
)  # fmt: skip
SMALL = rj.Preprocess(crop_px=(16, 24), resize_mode="squash", resize_px=(16, 24))
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def pretrained(labels: rj.Labels | None = LABELS, **fields) -> rj.Pretrained:
    model, variables = rj.create(CONFIG.replace(**fields), rng=0)
    return rj.Pretrained(model=model, variables=variables, preprocess=SMALL, labels=labels)


@pytest.fixture(scope="module")
def pre():
    return pretrained()


def inputs() -> np.ndarray:
    small = np.asarray(Image.fromarray(IMAGE).resize((24, 16), Image.Resampling.BILINEAR))
    mean, std = np.array(SMALL.mean), np.array(SMALL.std)
    return ((small / 255 - mean) / std).astype(np.float32)[None]


@pytest.mark.slow
@pytest.mark.parametrize("label", [0, 3])
def test_at_the_last_stage_the_weights_are_the_heads_over_the_pixels(pre, label):
    # The logit is the mean of the maps through the head: its derivative by a pixel is kernel / n.
    maps = np.asarray(rj.features(pre, inputs(), stages=("stage2",))["stage2"])[0]
    kernel = np.asarray(pre.variables["params"]["head"]["kernel"])[:, label]
    expected = np.maximum(maps @ kernel / maps[..., 0].size, 0)
    found = rj.explain(pre, IMAGE, label=label)
    assert (found.stage, found.heat.shape, found.heat.dtype) == ("stage2", (8, 12), np.float32)
    np.testing.assert_allclose(found.heat, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_earlier_the_weights_are_the_logits_differences_for_a_small_step(pre):
    maps = rj.features(pre, inputs(), stages=("stage1",))["stage1"]
    apply = jax.jit(pre.model.apply, static_argnames=("stage", "method"))
    step = 1e-2
    slopes = []
    for i in range(8):
        up, down = (
            apply(pre.variables, maps.at[..., i].add(by), stage="stage1", method="logits_from")
            for by in (step, -step)
        )
        slopes.append(np.asarray(up - down)[0] / (2 * step))
    # A step of a whole channel adds up its pixels' derivatives.
    weights = np.stack(slopes) / maps[0, ..., 0].size
    expected = np.maximum(np.asarray(maps[0]) @ weights, 0)
    found = [rj.explain(pre, IMAGE, label=i, stage="stage1").heat for i in range(4)]
    # ReLUs that the step crosses bend the line.
    np.testing.assert_allclose(np.stack(found, -1), expected, rtol=0, atol=0.05 * expected.max())
    assert (expected.max((0, 1)) > 0).sum() >= 2


def test_the_class_is_the_likeliest_unless_it_is_given(pre):
    (top,) = rj.predict(pre, [IMAGE], top=1)[0]
    found = rj.explain(pre, IMAGE).prediction
    assert (found.label, found.index) == (top.label, top.index)
    assert found.probability == pytest.approx(top.probability, rel=1e-5)
    probabilities = [rj.explain(pre, IMAGE, label=i).prediction.probability for i in range(4)]
    assert sum(probabilities) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("label", "index"), [("dog", 1), ("crane", 2), ("n4", 3), ("3", 3), (0, 0), (np.int64(1), 1)]
)
def test_a_label_is_a_name_an_id_or_an_index(pre, label, index):
    assert rj.explain(pre, IMAGE, label=label).prediction.index == index


@pytest.mark.parametrize("label", ["cow", "4", -1, "", "n5"])
def test_an_unknown_label_is_refused_with_what_there_is(pre, label):
    with pytest.raises(UnknownName, match=r"use a name, such as cat, dog, crane, or 0 to 3"):
        rj.explain(pre, IMAGE, label=label)


def test_v2_is_explained_after_its_last_norm():
    pre = pretrained(order="pre", shortcut_norm=False)
    found = rj.explain(pre, IMAGE)
    assert found.stage == "norm"
    maps = np.asarray(rj.features(pre, inputs(), stages=("norm",))["norm"])[0]
    kernel = np.asarray(pre.variables["params"]["head"]["kernel"])[:, found.prediction.index]
    expected = np.maximum(maps @ kernel / maps[..., 0].size, 0)
    np.testing.assert_allclose(found.heat, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", ["stem_conv", "pooled", "stage9"])
def test_a_stage_that_there_is_not_is_refused(pre, stage):
    with pytest.raises(ConfigError, match=rf"{stage}.* use stem"):
        rj.explain(pre, IMAGE, stage=stage)


def test_a_net_without_a_head_and_a_bad_image_are_refused(pre):
    with pytest.raises(ConfigError, match="no head"):
        rj.explain(pretrained(labels=None, num_classes=0), IMAGE)
    with pytest.raises(BadImage):
        rj.explain(pre, b"no image")


def test_the_drawing_shows_the_view_and_the_heat_side_by_side(pre):
    head = pre.variables["params"]["head"]
    found = rj.explain(pre, IMAGE, label=1)
    drawn = found.draw()
    # 16 x 24 pixels, each drawn 14 times: 224 on the shorter edge.
    assert (drawn.size, drawn.mode) == ((2 * 24 * 14, 16 * 14), "RGB")
    view = np.asarray(drawn)[::14, : 24 * 14 : 14]
    np.testing.assert_array_equal(view, found.pixels)
    heated = np.asarray(drawn, np.int64)[:, 24 * 14 :]
    colour = 2 * heated - np.asarray(drawn, np.int64)[:, : 24 * 14]
    hottest = np.unravel_index(found.heat.argmax(), found.heat.shape)
    coldest = np.unravel_index(found.heat.argmin(), found.heat.shape)
    red, blue = (colour[28 * i + 14, 28 * j + 14] for i, j in (hottest, coldest))
    assert red[0] > 200 > 60 > red[2]
    assert blue[0] < 60 < 90 < blue[2] + 15
    assert head["kernel"].dtype == jnp.float32


def test_a_heat_of_nothing_is_drawn_cold():
    pre = pretrained()
    pre.variables["params"]["head"]["kernel"] *= 0
    drawn = np.asarray(rj.explain(pre, IMAGE).draw())
    assert np.isfinite(drawn).all()
    heated, view = drawn[:, 24 * 14 :].astype(int), drawn[:, : 24 * 14].astype(int)
    assert np.abs(2 * heated - view - [[[0, 0, 96]]]).max() <= 2
