"""The arithmetic against loops in NumPy and numbers published or worked out by hand."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnetjax.nn import functions
from resnetjax.plan import Conv, Pool

RNG = np.random.default_rng(0)


def conv(kernel: int, **fields) -> Conv:
    plain = {"stride": 1, "dilation": 1, "groups": 1, "padding": 0, "bias": False}
    names = {"name": "conv", "in_features": 1, "features": 1, "standardize_eps": None}
    return Conv(**{**names, **plain, "kernel": kernel, **fields})


def images(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def convolve_by_loops(x, kernel, *, stride, dilation, groups, pads):
    """pads: pixels before and after, alike for rows and columns."""
    x = np.pad(x.astype(np.float64), ((0, 0), pads, pads, (0, 0)))
    size, _, inner, outputs = kernel.shape
    reach = dilation * (size - 1) + 1
    rows, columns = ((edge - reach) // stride + 1 for edge in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, outputs))
    for n, i, j, o in itertools.product(
        range(x.shape[0]), range(rows), range(columns), range(outputs)
    ):
        first = o // (outputs // groups) * inner
        top, left = i * stride, j * stride
        patch = x[n, top : top + reach : dilation, left : left + reach : dilation]
        out[n, i, j, o] = (patch[..., first : first + inner] * kernel[..., o]).sum()
    return out


def convolve(x: np.ndarray, kernel: np.ndarray, spec: Conv) -> np.ndarray:
    return np.asarray(functions.convolve(jnp.asarray(x), jnp.asarray(kernel), spec))


# Convolutions.


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups", "padding", "edge"),
    [
        (3, 1, 1, 1, 1, 5),
        (3, 2, 1, 1, 1, 6),
        (3, 2, 1, 1, 1, 7),
        (7, 2, 1, 1, 3, 8),
        (1, 2, 1, 1, 0, 5),
        (3, 1, 2, 1, 2, 6),
        (3, 1, 4, 1, 4, 5),
        (3, 2, 1, 2, 1, 6),
        (3, 1, 1, 4, 1, 4),
    ],
)
def test_a_convolution_is_the_sum_over_window_and_group(
    kernel, stride, dilation, groups, padding, edge
):
    x, weights = images(2, edge, edge, 4), images(kernel, kernel, 4 // groups, 8)
    spec = conv(kernel, stride=stride, dilation=dilation, groups=groups, padding=padding)
    expected = convolve_by_loops(
        x, weights, stride=stride, dilation=dilation, groups=groups, pads=(padding, padding)
    )
    # float32 sums of up to 196 products of order 1
    np.testing.assert_allclose(convolve(x, weights, spec), expected, atol=2e-5)


# tf_slim's resnet_v1_test.testConv2DSameEven: a 4x4 image of i + j and a 3x3 kernel of the same.
SLIM_IMAGE = np.add.outer(np.arange(4), np.arange(4)).astype(np.float32)[None, ..., None]
SLIM_KERNEL = np.add.outer(np.arange(3), np.arange(3)).astype(np.float32)[..., None, None]


@pytest.mark.parametrize(
    ("padding", "expected"), [(1, [[14, 43], [43, 84]]), ("same", [[48, 37], [37, 22]])]
)
def test_f01_strided_padding_agrees_with_slims_published_example(padding, expected):
    found = convolve(SLIM_IMAGE, SLIM_KERNEL, conv(3, stride=2, padding=padding))
    np.testing.assert_array_equal(found[0, ..., 0], expected)


def test_f01_same_padding_of_an_odd_image_is_symmetric():
    x, kernel = images(1, 5, 5, 1), images(3, 3, 1, 1)
    same, torch = (
        convolve(x, kernel, conv(3, stride=2, padding=padding)) for padding in ("same", 1)
    )
    np.testing.assert_array_equal(same, torch)


def test_f01_same_padding_of_a_7x7_stem_is_two_before_and_three_after():
    x, kernel = images(1, 8, 8, 1), images(7, 7, 1, 1)
    expected = convolve_by_loops(x, kernel, stride=2, dilation=1, groups=1, pads=(2, 3))
    found = convolve(x, kernel, conv(7, stride=2, padding="same"))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 sums of 49 products


# Pools.


def pool(x, spec: Pool) -> np.ndarray:
    return np.asarray(functions.pool(jnp.asarray(x, jnp.float32)[None, ..., None], spec))[0, ..., 0]


NEGATIVE = -np.arange(1.0, 17.0).reshape(4, 4)


def test_f02_a_max_pool_padded_with_minus_infinity_keeps_negative_values():
    assert pool(NEGATIVE, Pool("max", 3, 2, 1)).tolist() == [[-1, -2], [-5, -6]]


def test_f02_a_max_pool_padded_with_zeros_raises_negative_borders_to_zero():
    assert pool(NEGATIVE, Pool("max", 3, 2, 1, "zero")).tolist() == [[0, 0], [0, -6]]


def test_f02_a_max_pool_of_same_padding_reaches_over_the_far_edge_only():
    assert pool(NEGATIVE, Pool("max", 3, 2, "same")).tolist() == [[-1, -3], [-9, -11]]
    assert pool(NEGATIVE, Pool("max", 3, 2, "same", "zero")).tolist() == [[-1, 0], [0, 0]]


def test_f02_zeros_equal_minus_infinity_after_a_relu():
    x = np.maximum(images(7, 9), 0)
    infinite, zero = (pool(x, Pool("max", 3, 2, 1, value)) for value in ("-inf", "zero"))
    np.testing.assert_array_equal(infinite, zero)


def test_a_max_pool_of_size_one_subsamples_from_the_first_pixel():
    x = np.arange(15.0).reshape(3, 5)
    assert pool(x, Pool("max", 1, 2)).tolist() == [[0, 2, 4], [10, 12, 14]]


def test_the_gradient_of_a_max_pool_goes_to_each_windows_maximum():
    x = jnp.asarray(NEGATIVE, jnp.float32)[None, ..., None]
    spec = Pool("max", 3, 2, 1)
    gradient = jax.grad(lambda x: functions.pool(x, spec).sum())(x)[0, ..., 0]
    expected = np.zeros((4, 4))
    expected[0, 0] = expected[0, 1] = expected[1, 0] = expected[1, 1] = 1
    np.testing.assert_array_equal(gradient, expected)


ODD = np.arange(1.0, 10.0).reshape(3, 3)


def test_an_average_of_same_padding_divides_by_the_pixels_that_are_there():
    # torch: AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    assert pool(ODD, Pool("average", 2, 2, "same")).tolist() == [[3, 4.5], [7.5, 9]]


def test_an_average_that_counts_its_padding_divides_by_the_whole_window():
    # timm: AvgPool2dSame pads with zeros first
    expected = [[3, 4, 2.25], [6, 7, 3.75], [3.75, 4.25, 2.25]]
    assert pool(ODD, Pool("average", 2, 1, "same", count_padding=True)).tolist() == expected


def test_an_average_without_padding_drops_the_odd_row_and_column():
    # torch: AvgPool2d(2)
    assert pool(ODD, Pool("average", 2, 2)).tolist() == [[3]]


@pytest.mark.parametrize("edge", [4, 5])
def test_averages_of_any_size_match_loops_over_windows(edge):
    x = images(edge, edge)
    out = math.ceil(edge / 2)
    windows = [
        [x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(out)] for i in range(out)
    ]
    found = pool(x, Pool("average", 2, 2, "same"))
    np.testing.assert_allclose(found, windows, rtol=1e-5)  # another order of four additions


def test_blur_weighs_by_the_binomial_and_reflects_its_borders():
    # timm: BlurPool2d of filt_size 3, [1, 2, 1] / 4 both ways. Rows are 0, 4, 8, 12, with 4 above
    # and 8 below by reflection; columns are constant.
    rows = np.repeat([[0.0], [4.0], [8.0], [12.0]], 4, axis=1)
    assert pool(rows, Pool("blur", 3, 1, 1))[:, 0].tolist() == [2, 4, 8, 10]
    assert pool(rows, Pool("blur", 3, 2, 1)).tolist() == [[2, 2], [8, 8]]
    assert pool(rows.T, Pool("blur", 3, 2, 1)).tolist() == [[2, 8], [2, 8]]


def test_blur_mixes_no_channels():
    x = np.zeros((1, 5, 5, 3), np.float32)
    x[0, 2, 2] = (1, 2, 3)
    found = np.asarray(functions.pool(jnp.asarray(x), Pool("blur", 3, 2, 1)))
    np.testing.assert_array_equal(found[0, 1, 1], np.array([0.25, 0.5, 0.75], np.float32))


def test_pools_keep_bfloat16():
    x = jnp.asarray(images(1, 6, 6, 2), jnp.bfloat16)
    for spec in (Pool("max", 3, 2, 1), Pool("average", 2, 2, "same"), Pool("blur", 3, 2, 1)):
        assert functions.pool(x, spec).dtype == jnp.bfloat16, spec.kind


# Norms.


def batch_normalize(x, scale=None, bias=None, *, eps=1e-5, axis_name=None, dtype=None):
    ones, zeros = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
    scale, bias = ones if scale is None else scale, zeros if bias is None else bias
    return functions.batch_normalize(x, scale, bias, eps, axis_name, dtype or x.dtype)


def test_f03_batch_statistics_are_the_mean_and_the_biased_variance():
    x = images(3, 4, 5, 6) * 3 + 1
    _, mean, var = batch_normalize(jnp.asarray(x))
    flat = x.reshape(-1, 6).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, flat.var(0, ddof=0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1000.3, -12345.678])
def test_the_variance_of_a_constant_channel_is_never_negative(value):
    # E[x^2] - E[x]^2 in float32 may round below zero, of which a square root would be NaN.
    out, _, var = batch_normalize(jnp.full((4, 7, 7, 2), value, jnp.float32))
    assert (np.asarray(var) >= 0).all()
    assert np.isfinite(np.asarray(out)).all()


def test_the_gradient_through_the_variance_of_a_constant_channel_is_finite():
    x = jnp.full((2, 3, 3, 1), 0.1)
    gradient = jax.grad(lambda x: (batch_normalize(x)[0] * jnp.arange(18.0).reshape(x.shape)).sum())
    assert np.isfinite(np.asarray(gradient(x))).all()


def test_statistics_of_bfloat16_activations_are_summed_in_float32():
    # 4096 ones and a channel of 1 + 1/128: bfloat16 sums would stop at 256.
    channels = jnp.array([1, 1 + 1 / 128], jnp.bfloat16).reshape(1, 1, 1, 2)
    out, mean, var = batch_normalize(jnp.broadcast_to(channels, (1, 64, 64, 2)))
    assert out.dtype == jnp.bfloat16
    assert mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(mean, [1, 1 + 1 / 128], rtol=1e-6)


def test_statistics_over_a_mapped_axis_are_those_of_the_whole():
    x = jnp.asarray(images(4, 3, 5, 5, 2))
    split = jax.vmap(lambda part: batch_normalize(part, axis_name="devices"), axis_name="devices")
    out, *statistics = split(x)
    whole, *expected = batch_normalize(x.reshape(12, 5, 5, 2))
    for parts, one in zip(statistics, expected, strict=True):
        for part in parts:
            np.testing.assert_allclose(part, one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.reshape(whole.shape), whole, rtol=1e-5, atol=1e-5)


def plain_batch_norm(x, scale, bias, eps):
    mean = x.mean((0, 1, 2), keepdims=True)
    var = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
    over = (1, 1, 1, -1)
    return (x - mean) / jnp.sqrt(var + eps) * scale.reshape(over) + bias.reshape(over)


def norm_arguments() -> tuple[np.ndarray, ...]:
    """Activations off centre, scale, bias, and a cotangent without structure, in float64."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 3, 5, 6)) * rng.uniform(0.01, 3, 6) + rng.standard_normal(6)
    return x, rng.standard_normal(6), rng.standard_normal(6), rng.standard_normal(x.shape)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_the_written_derivative_is_that_of_the_plain_formula(eps):
    with jax.enable_x64(True):
        x, scale, bias, cotangent = map(jnp.asarray, norm_arguments())
        found, pull = jax.vjp(lambda *a: batch_normalize(*a, eps=eps)[0], x, scale, bias)
        expected, pull_plain = jax.vjp(lambda *a: plain_batch_norm(*a, eps), x, scale, bias)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        for gradient, plain in zip(pull(cotangent), pull_plain(cotangent), strict=True):
            np.testing.assert_allclose(gradient, plain, rtol=1e-12, atol=1e-12)


def test_the_derivative_over_a_mapped_axis_is_that_of_the_whole_batch():
    # Each part sees its share of the loss; what it gives to scale and bias is summed afterwards.
    with jax.enable_x64(True):
        x, scale, bias, cotangent = map(jnp.asarray, norm_arguments())
        whole = jax.vjp(lambda *a: batch_normalize(*a)[0], x, scale, bias)[1](cotangent)

        def part(x, cotangent):
            run = functools.partial(batch_normalize, axis_name="devices")
            return jax.vjp(lambda *a: run(*a)[0], x, scale, bias)[1](cotangent)

        split = jax.vmap(part, axis_name="devices")(
            x.reshape(2, 2, 3, 5, 6), cotangent.reshape(2, 2, 3, 5, 6)
        )
        np.testing.assert_allclose(split[0].reshape(x.shape), whole[0], rtol=1e-12, atol=1e-12)
        for parts, expected in zip(split[1:], whole[1:], strict=True):
            np.testing.assert_allclose(parts.sum(0), expected, rtol=1e-12, atol=1e-12)


def test_mean_and_variance_pass_no_gradient_on():
    x = jnp.asarray(images(2, 3, 3, 2))
    gradient = jax.grad(lambda x: sum(s.sum() for s in batch_normalize(x)[1:]))(x)
    np.testing.assert_array_equal(gradient, np.zeros(x.shape))


def test_gradients_of_bfloat16_activations_are_bfloat16_and_those_of_parameters_float32():
    x, scale, bias, cotangent = (jnp.asarray(a, jnp.float32) for a in norm_arguments())
    out, pull = jax.vjp(
        lambda *a: batch_normalize(*a, dtype=jnp.bfloat16)[0], x.astype(jnp.bfloat16), scale, bias
    )
    found = pull(cotangent.astype(jnp.bfloat16))
    exact = jax.vjp(lambda *a: plain_batch_norm(*a, 1e-5), x, scale, bias)[1](cotangent)
    assert out.dtype == jnp.bfloat16
    assert [g.dtype for g in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for gradient, expected in zip(found, exact, strict=True):
        # bfloat16 has 8 bits; channel 0's values differ by the tenth part of their mean
        spread = np.abs(expected).max()
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected, atol=0.04 * spread)


def test_normalize_divides_by_the_root_of_variance_plus_epsilon():
    # F3: with a variance of epsilon's size a wrong epsilon shows.
    x = jnp.full((1, 1, 1, 2), 3.0)
    mean, var = jnp.array([1.0, 3.0]), jnp.array([1e-5, 4.0])
    out = functions.normalize(
        x, mean, var, jnp.array([2.0, 5.0]), jnp.array([0.5, -1.0]), 1e-5, x.dtype
    )
    expected = [2 / math.sqrt(2e-5) * 2 + 0.5, -1.0]
    np.testing.assert_allclose(out[0, 0, 0], expected, rtol=1e-6)


def test_normalize_subtracts_before_it_scales_in_float32():
    # As x * f - mean * f, in bfloat16, 1000 - 999 would vanish.
    x = jnp.full((1, 1, 1, 1), 1000, jnp.bfloat16)
    out = functions.normalize(
        x, jnp.array([999.0]), jnp.array([1.0]), jnp.ones(1), jnp.zeros(1), 1e-9, jnp.bfloat16
    )
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0, 0]) == 1.0


def test_group_norm_normalises_each_image_by_the_pixels_of_a_groups_channels():
    x = images(2, 3, 4, 6) * 2 + 1
    scale, bias = jnp.asarray(images(6)), jnp.asarray(images(6))
    found = functions.group_normalize(jnp.asarray(x), scale, bias, 2, 1e-5, jnp.float32)
    expected = np.empty_like(x, np.float64)
    for n, group in itertools.product(range(2), (slice(0, 3), slice(3, 6))):
        part = x[n, ..., group].astype(np.float64)
        expected[n, ..., group] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    expected = expected * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_group_norm_of_a_group_whose_variance_is_epsilon_shows_the_epsilon():
    x = jnp.asarray([3e-3, -3e-3]).reshape(1, 1, 1, 2)
    found = functions.group_normalize(x, jnp.ones(2), jnp.zeros(2), 1, 9e-6, jnp.float32)
    np.testing.assert_allclose(found[0, 0, 0], [math.sqrt(0.5), -math.sqrt(0.5)], rtol=1e-5)


def test_standardized_kernels_have_mean_0_and_variance_1_for_each_output():
    kernel = images(3, 3, 4, 5) * 7 + 3
    found = np.asarray(functions.standardize(jnp.asarray(kernel), 1e-10)).reshape(-1, 5)
    np.testing.assert_allclose(found.mean(0), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(found.var(0), np.ones(5), rtol=1e-5)  # biased, as in BiT


def test_f08_standardization_adds_epsilon_within_the_root():
    kernel = jnp.asarray([1e-4, -1e-4]).reshape(1, 1, 2, 1)  # variance 1e-8
    found = functions.standardize(kernel, 1e-8)
    np.testing.assert_allclose(found[0, 0, :, 0], [math.sqrt(0.5), -math.sqrt(0.5)], rtol=1e-5)


# Channels.


def test_f08_option_a_pads_channels_with_zeros_equally_on_both_sides():
    x = jnp.ones((1, 2, 2, 2))
    found = functions.pad_channels(x, 4)
    np.testing.assert_array_equal(found[0, 1, 1], [0, 0, 1, 1, 0, 0])


@pytest.mark.parametrize("size", [3, 5, 7])
def test_eca_convolves_along_the_channels_with_zeros_beyond_them(size):
    x, kernel = images(2, 9), images(size)
    expected = np.array([np.correlate(row, kernel, mode="same") for row in x.astype(np.float64)])
    found = functions.channel_convolve(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_eca_does_not_flip_its_kernel():
    found = functions.channel_convolve(jnp.asarray([[1.0, 0, 0, 0]]), jnp.asarray([10.0, 20, 30]))
    assert found.tolist() == [[20, 10, 0, 0]]


# Activations: values at 1 from their definitions.


@pytest.mark.parametrize(
    ("name", "at_one", "at_minus_one"),
    [
        (None, 1, -1),
        ("relu", 1, 0),
        ("silu", 1 / (1 + math.exp(-1)), -1 / (1 + math.exp(1))),
        ("gelu", 0.5 * (1 + math.erf(math.sqrt(0.5))), -0.5 * (1 - math.erf(math.sqrt(0.5)))),
        (
            "gelu_tanh",
            0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)),
            -0.5 * (1 - math.tanh(math.sqrt(2 / math.pi) * 1.044715)),
        ),
    ],
)
def test_an_activation_has_the_values_of_its_definition(name, at_one, at_minus_one):
    x = jnp.asarray([1.0, -1.0]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(
        functions.activate(x, name)[0, 0, 0], [at_one, at_minus_one], rtol=1e-6
    )


# Dropping.


def test_drop_path_drops_whole_images_and_scales_the_rest():
    x = jnp.ones((4000, 2, 2, 3))
    found = np.asarray(functions.drop_path(x, 0.25, jax.random.key(0)))
    per_image = found.reshape(4000, -1)
    assert (per_image == per_image[:, :1]).all()
    assert set(np.unique(per_image)) == {np.float32(0), np.float32(1 / 0.75)}
    # 1000 of 4000 expected; four standard deviations are 110
    assert abs((per_image[:, 0] == 0).sum() - 1000) < 110


def test_dropout_drops_single_values_and_keeps_the_mean():
    found = np.asarray(functions.dropout(jnp.ones((100, 10, 10)), 0.2, jax.random.key(1)))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1.25)}
    assert abs((found == 0).mean() - 0.2) < 0.016  # four standard deviations of 10,000 draws
    assert 0 < (found[0] == 0).mean() < 1


def test_what_is_dropped_has_no_gradient_even_where_it_is_infinite():
    x = jnp.asarray([[jnp.inf, 1.0]] * 8).reshape(8, 1, 1, 2)
    key = jax.random.key(2)
    found = np.asarray(functions.drop_path(x, 0.5, key))
    dropped = (found == 0).all((1, 2, 3))
    assert 0 < dropped.sum() < 8
    assert not np.isnan(found).any()
