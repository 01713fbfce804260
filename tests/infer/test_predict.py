import dataclasses
import io
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax.data.preprocess import preprocess
from resnetjax.errors import BadImage, ConfigError, NonFinite
from resnetjax.infer.predict import predict_each

CLASSES = 7
NAMES = tuple(f"class {i}" for i in range(CLASSES))
# One mean and one scale for all channels, so that grey is the same picture as its three copies.
PREPROCESS = rj.Preprocess(
    crop_px=(16, 16), resize_mode="squash", resize_px=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3
)
CONFIG = rj.ResNetConfig(
    block="basic",
    depths=(1, 1),
    widths=(8, 16),
    strides=(1, 2),
    dilations=(1, 1),
    stem="conv3",
    stem_width=8,
    stem_pool="none",
    num_classes=CLASSES,
)


@pytest.fixture(scope="module")
def pre(images):
    """A net whose predictions differ from image to image, most of them confident."""
    model, variables = rj.create(CONFIG, rng=0)
    labels = rj.Labels(names=NAMES)
    pre = rj.Pretrained(model=model, variables=variables, preprocess=PREPROCESS, labels=labels)
    logits = logits_of(pre, images)
    head = variables["params"]["head"]
    head["kernel"] *= 3 / logits.std(0).mean()
    head["bias"] = jnp.asarray(-3 * logits.mean(0) / logits.std(0).mean(), jnp.float32)
    return pre


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (33, 3, 3, 3), np.uint8)
    return [np.asarray(Image.fromarray(x).resize((20, 24))) for x in coarse]


@pytest.fixture(scope="module")
def saved(pre, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    rj.save(pre, folder)
    return folder


def logits_of(pre, images) -> np.ndarray:
    """The net's outputs by one plain application."""
    inputs = jnp.stack([preprocess(x, pre.preprocess) for x in images])
    return np.asarray(pre.model.apply(pre.variables, inputs, train=False), np.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def logits(pre, images):
    return logits_of(pre, images)


def by_index(found) -> np.ndarray:
    """Predictions of all classes, as one row an image in the order of the classes."""
    rows = [{p.index: p.probability for p in row} for row in found]
    return np.array([[row[i] for i in range(CLASSES)] for row in rows])


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_predictions_are_the_softmax_of_the_logits_with_the_labels_names(pre, images, logits):
    expected = softmax(logits)
    found = rj.predict(pre, images, top=CLASSES)
    np.testing.assert_allclose(by_index(found), expected, rtol=1e-4, atol=1e-6)
    assert [row[0].index for row in found] == expected.argmax(1).tolist()
    assert {(p.index, p.label) for row in found for p in row} == set(enumerate(NAMES))
    assert len({row[0].index for row in found}) > 3  # else mixed-up images would go unnoticed


def test_predictions_are_of_plain_python_types(pre, images):
    found = rj.predict(pre, images[0])[0][0]
    assert [type(value) for value in vars(found).values()] == [str, int, float]


def test_path_text_bytes_pillow_and_arrays_give_the_same(pre, images, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(images[0]))
    sources = [path, str(path), path.read_bytes(), Image.open(path), images[0]]
    sources.append(jnp.asarray(images[0]))
    expected = rj.predict(pre, [images[0]])
    for source in sources:
        assert rj.predict(pre, source) == expected  # alone
        assert rj.predict(pre, [source]) == expected


def test_grey_and_transparent_arrays_are_images_too(pre, images):
    grey, opaque = images[0][..., 0], np.full((24, 20, 1), 255, np.uint8)
    tripled = rj.predict(pre, np.stack([grey] * 3, axis=-1))
    assert rj.predict(pre, grey) == tripled
    assert rj.predict(pre, grey[..., None]) == tripled
    assert rj.predict(pre, np.dstack([images[0], opaque])) == rj.predict(pre, images[0])


def test_batch_arrays_generators_and_tuples_are_lists_of_images(pre, images):
    expected = rj.predict(pre, images[:3])
    assert rj.predict(pre, np.stack(images[:3])) == expected
    assert rj.predict(pre, (x for x in images[:3])) == expected
    assert rj.predict(pre, tuple(images[:3])) == expected


@pytest.mark.parametrize("nothing", [[], (), iter(()), np.zeros((0, 8, 8, 3), np.uint8)])
def test_no_images_give_no_predictions(pre, nothing):
    assert rj.predict(pre, nothing) == []


@pytest.mark.parametrize("count", [1, 2, 3, 32, 33])
def test_a_batch_gives_what_its_images_give_alone(pre, images, count):
    alone = [rj.predict(pre, x, top=CLASSES)[0] for x in images[:count]]
    together = rj.predict(pre, images[:count], top=CLASSES)
    assert len(together) == count
    np.testing.assert_allclose(by_index(together), by_index(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 32, 1000])
def test_batch_size_changes_no_prediction(pre, images, logits, batch_size):
    found = rj.predict(pre, images[:13], top=CLASSES, batch_size=batch_size)
    np.testing.assert_allclose(by_index(found), softmax(logits[:13]), rtol=1e-4, atol=1e-6)


def compilations(caplog) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [text for text in messages if text.startswith("Compiling jit(_scores)")]


def test_any_number_of_images_compiles_one_program_for_each_power_of_two(images, caplog):
    model, variables = rj.create(CONFIG.replace(num_classes=5))  # nobody else has compiled it
    pre = rj.Pretrained(model=model, variables=variables, preprocess=PREPROCESS)
    with jax.log_compiles():
        for count in range(1, 34):
            rj.predict(pre, images[:count])
    assert len(compilations(caplog)) == 6  # 1, 2, 4, 8, 16, 32


def test_a_batch_size_that_is_no_power_of_two_is_not_exceeded(images, caplog):
    model, variables = rj.create(CONFIG.replace(num_classes=4))
    pre = rj.Pretrained(model=model, variables=variables, preprocess=PREPROCESS)
    with jax.log_compiles():
        rj.predict(pre, images[:20], batch_size=5)
    (only,) = compilations(caplog)
    assert "uint8[5,16,16,3]" in only


def test_a_second_call_compiles_nothing(pre, images, caplog):
    rj.predict(pre, images[:5])
    with jax.log_compiles():
        rj.predict(pre, images[5:11])  # as many powers of two, other images
        rj.predict(pre, images[11:19])
    assert compilations(caplog) == []


def test_another_top_does_not_compile_the_net_again(pre, images, caplog):
    rj.predict(pre, images[:5])
    with jax.log_compiles():
        rj.predict(pre, images[:5], top=2)
    assert compilations(caplog) == []


def test_a_net_loaded_twice_compiles_once(saved, images, caplog):
    rj.predict(rj.load(saved), images[:2])
    with jax.log_compiles():
        rj.predict(rj.load(saved), images[:2])
    assert compilations(caplog) == []


def test_predictions_are_sorted_and_top_cuts_them(pre, images):
    everything = rj.predict(pre, images, top=CLASSES)
    for row in everything:
        probabilities = [p.probability for p in row]
        assert probabilities == sorted(probabilities, reverse=True)
    for top in (0, 1, 3):
        found = rj.predict(pre, images, top=top)
        indices = [[p.index for p in row] for row in found]
        assert indices == [[p.index for p in row[:top]] for row in everything]


def test_top_beyond_the_number_of_classes_gives_each_class_once(pre, images):
    (row,) = rj.predict(pre, images[0], top=1000)
    assert sorted(p.index for p in row) == list(range(CLASSES))


def test_five_classes_are_given_where_nothing_is_said(pre, images):
    assert len(rj.predict(pre, images[0])[0]) == 5


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("softmax", softmax),
        ("sigmoid", lambda logits: 1 / (1 + np.exp(-logits))),
        ("none", lambda logits: logits),
    ],
)
def test_the_labels_activation_makes_the_probabilities(pre, images, logits, activation, expected):
    labels = rj.Labels(names=NAMES, activation=activation)
    found = rj.predict(dataclasses.replace(pre, labels=labels), images[:4], top=CLASSES)
    np.testing.assert_allclose(by_index(found), expected(logits[:4]), rtol=1e-4, atol=1e-5)


def test_a_regressions_values_are_all_given_in_their_order(pre, images, logits):
    labels = rj.Labels(names=NAMES, activation="none")
    (found,) = rj.predict(dataclasses.replace(pre, labels=labels), images[:1], top=1)
    assert [prediction.label for prediction in found] == list(NAMES)
    np.testing.assert_allclose([p.probability for p in found], logits[0], rtol=1e-4, atol=1e-5)


def test_without_labels_digits_name_the_classes_and_softmax_rates_them(pre, images):
    unnamed = dataclasses.replace(pre, labels=None)
    found = rj.predict(unnamed, images[:3], top=CLASSES)
    assert {(p.index, p.label) for row in found for p in row} == {
        (i, str(i)) for i in range(CLASSES)
    }
    np.testing.assert_allclose(by_index(found).sum(1), 1, rtol=1e-5)


def test_an_image_that_is_bad_raises_and_is_named(pre, images, tmp_path):
    path = tmp_path / "not an image.jpg"
    path.write_bytes(b"\xff\xd8\xff and no more")
    with pytest.raises(BadImage, match=r"not an image\.jpg"):
        rj.predict(pre, [images[0], path, images[1]])
    with pytest.raises(BadImage, match=r"absent\.jpg"):
        rj.predict(pre, tmp_path / "absent.jpg")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_predict_each_yields_the_error_in_the_bad_images_place(
    pre, images, logits, tmp_path, batch_size
):
    bad = [tmp_path / f"bad{i}.jpg" for i in range(4)]
    for path in bad:
        path.write_bytes(encode(images[0], "JPEG")[:100])
    # At the start, two in a row (a whole batch of two), and at the end.
    sources = [bad[0], images[0], bad[1], bad[2], images[1], images[2], bad[3]]
    found = list(predict_each(pre, sources, top=CLASSES, batch_size=batch_size))
    errors = {i: str(result) for i, result in enumerate(found) if isinstance(result, BadImage)}
    assert list(errors) == [0, 2, 3, 6]
    for path, text in zip(bad, errors.values(), strict=True):
        assert str(path) in text
    good = [result for result in found if not isinstance(result, BadImage)]
    np.testing.assert_allclose(by_index(good), softmax(logits[:3]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_outputs_that_are_not_finite_are_an_error_and_no_prediction(pre, images, activation):
    variables = jax.tree.map(jnp.array, pre.variables)
    variables["params"]["head"]["kernel"] *= jnp.nan
    labels = rj.Labels(names=NAMES, activation=activation)
    broken = dataclasses.replace(pre, variables=variables, labels=labels)
    with pytest.raises(
        NonFinite, match=r"image uint8\[24, 20, 3\]: the net's outputs are not finite"
    ):
        rj.predict(broken, images[0])
    found = list(predict_each(broken, [images[0], b"no image", images[1]]))
    assert [type(result) for result in found] == [NonFinite, BadImage, NonFinite]


def test_images_are_taken_at_most_two_batches_ahead(pre, images):
    taken = 0

    def endless():
        nonlocal taken
        for x in itertools.cycle(images):
            taken += 1
            yield x

    results = predict_each(pre, endless(), batch_size=4)
    assert taken == 0
    for given in range(1, 26):
        assert len(next(results)) == 5
        assert taken <= -(-given // 4) * 4 + 8
    results.close()


def test_leaving_early_leaves_no_threads_behind(pre, images):
    before = set(threading.enumerate())
    results = predict_each(pre, itertools.cycle(images), batch_size=2)
    next(results)
    results.close()
    assert set(threading.enumerate()) <= before


def test_an_error_of_the_callers_generator_reaches_the_caller(pre, images):
    def failing():
        yield images[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        rj.predict(pre, failing())


def test_a_net_without_a_head_is_refused(saved, images):
    headless = rj.load(saved, num_classes=0)
    with pytest.raises(ConfigError, match=r"no head.*num_classes"):
        rj.predict(headless, images[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0 is not allowed: use 1 or more"),
        ({"batch_size": -3}, r"batch_size=-3 is not allowed"),
        ({"top": -1}, r"top=-1 is not allowed: use 0 or more"),
    ],
)
def test_a_batch_size_or_top_that_cannot_be_is_refused(pre, images, arguments, message):
    with pytest.raises(ConfigError, match=message):
        rj.predict(pre, images[0], **arguments)
    with pytest.raises(ConfigError, match=message):
        list(predict_each(pre, [], **arguments))


def test_a_stem_folded_to_grey_sees_in_a_grey_file_what_three_channels_saw(
    pre, saved, images, tmp_path
):
    path = tmp_path / "grey.png"
    path.write_bytes(encode(images[0][..., 0]))
    grey = rj.load(saved, in_channels=1)
    assert grey.preprocess.channels == 1
    np.testing.assert_allclose(
        by_index(rj.predict(grey, path, top=CLASSES)),
        by_index(rj.predict(pre, path, top=CLASSES)),
        rtol=1e-3,
        atol=1e-5,
    )
    assert rj.predict(grey, images[0]) == rj.predict(grey, Image.fromarray(images[0]).convert("L"))


def test_a_net_made_for_grey_images_takes_them(images):
    model, variables = rj.create(CONFIG.replace(in_channels=1))
    small = dataclasses.replace(PREPROCESS, mean=(0.5,), std=(0.25,))
    pre = rj.Pretrained(model=model, variables=variables, preprocess=small)
    found = rj.predict(pre, [images[0], images[0][..., 0]], top=CLASSES)
    expected = softmax(logits_of(pre, [images[0], images[0][..., 0]]))
    np.testing.assert_allclose(by_index(found), expected, rtol=1e-4, atol=1e-6)


def test_a_new_head_loses_the_old_labels(saved, images):
    (row,) = rj.predict(rj.load(saved, num_classes=3), images[0])
    assert sorted(p.label for p in row) == ["0", "1", "2"]


def test_bfloat16_agrees_on_the_first_class_of_confident_images(saved, images):
    exact = rj.predict(rj.load(saved), images, top=2)
    rounded = rj.predict(rj.load(saved, dtype=jnp.bfloat16), images, top=2)
    sure = [i for i, (a, b) in enumerate(exact) if a.probability - b.probability > 0.3]
    assert len(sure) > 10
    assert [rounded[i][0].label for i in sure] == [exact[i][0].label for i in sure]
    # bfloat16 keeps 8 bits: a probability that agrees better was computed in float32.
    assert any(
        abs(a[0].probability - b[0].probability) > 1e-4 for a, b in zip(exact, rounded, strict=True)
    )


@pytest.fixture(scope="module")
def inputs(pre, images):
    return jnp.stack([preprocess(x, pre.preprocess) for x in images[:2]])


def test_all_features_come_in_the_nets_order_with_its_channels_and_strides(pre, inputs):
    found = rj.features(pre, inputs)
    assert list(found) == ["stem_conv", "stem", "stage1", "stage2"]
    info = {i.name: (2, 16 // i.stride, 16 // i.stride, i.channels) for i in pre.model.feature_info}
    assert {name: x.shape for name, x in found.items()} == info
    assert found["stage2"].shape == (2, 8, 8, 16)


@pytest.mark.parametrize("stages", [("stage2", "stem", "stage1"), ["stage1"], ()])
def test_features_come_as_they_are_asked_for(pre, inputs, stages):
    found = rj.features(pre, inputs, stages=stages)
    assert list(found) == list(stages)
    everything = rj.features(pre, inputs)
    for name, x in found.items():
        np.testing.assert_allclose(x, everything[name], rtol=1e-5, atol=1e-6)


def test_the_head_makes_the_logits_from_the_last_stages_features(pre, inputs, logits):
    pooled = np.asarray(rj.features(pre, inputs, stages=("stage2",))["stage2"]).mean((1, 2))
    head = pre.variables["params"]["head"]
    made = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(made, logits[:2], rtol=1e-4, atol=1e-5)


def test_features_are_taken_from_images_of_any_size_and_nets_without_a_head(saved):
    headless = rj.load(saved, num_classes=0)
    found = rj.features(headless, np.zeros((1, 40, 24, 3), np.float32), stages=("stage2",))
    assert found["stage2"].shape == (1, 20, 12, 16)


def test_features_of_no_such_name_are_refused_with_those_there_are(pre, inputs):
    with pytest.raises(ConfigError, match=r"stage7.*stem_conv, stem, stage1, stage2"):
        rj.features(pre, inputs, stages=("stem", "stage7"))


def test_features_of_images_with_other_channels_are_refused(pre):
    with pytest.raises(ConfigError, match=r"expected .*3"):
        rj.features(pre, np.zeros((1, 16, 16, 1), np.float32))
