"""A `Preprocess` in words."""

from resnetjax.config import Preprocess


def in_words(config: Preprocess) -> str:
    """How images are prepared, in one line.

    Example:
        >>> in_words(Preprocess(mean=(0.5,), std=(0.25,)))
        'resize short_edge 256 bilinear, crop 224x224, divide by 255, mean 0.5, std 0.25, rgb'
    """
    height, width = config.crop_px
    edges = "x".join(map(str, config.resize_px if isinstance(config.resize_px, tuple) else ()))
    resize = f"{config.resize_mode} {edges or config.resize_px} {config.interpolation}"
    resize += "" if config.antialias else " without antialiasing"
    steps = (
        *([] if config.resize_mode == "none" else [f"resize {resize}"]),
        f"crop {height}x{width}",
        f"divide by {config.divisor:g}",
        *(
            f"{name} {' '.join(f'{value:.6g}' for value in values)}"
            for name, values in (("mean", config.mean), ("std", config.std))
        ),
        config.channel_order,
    )
    return ", ".join(steps)
