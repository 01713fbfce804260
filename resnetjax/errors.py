"""Every error that resnetjax raises on purpose.

Each is also the built-in error that a caller would expect (`ValueError`, `LookupError`, ...), so that code
which knows nothing of resnetjax still catches the right thing.
"""


class ResNetJAXError(Exception):
    """Base class of every error below."""


class ConfigError(ResNetJAXError, ValueError):
    """A configuration field holds a value that is not allowed; the message names field, value and choices."""


class UnknownName(ResNetJAXError, LookupError):
    """No architecture, published weight, dialect or label goes by this name."""


class UnsupportedFile(ResNetJAXError, ValueError):
    """The file is well-formed, as far as was read, but holds something that resnetjax does not read."""


class CorruptFile(ResNetJAXError, ValueError):
    """The file is truncated, inconsistent or not what its format demands."""


class UnsafeWeights(ResNetJAXError, ValueError):
    """A weight file asks to run code, to open other files, or to take memory that its size cannot justify."""


class WeightsMismatch(ResNetJAXError, ValueError):
    """Arrays do not fit the model; the message lists every missing, unexpected and mis-shaped one."""


class BadImage(ResNetJAXError, ValueError):
    """An image cannot be decoded, or is refused before decoding (format, number of pixels)."""


class BatchNormError(ResNetJAXError, ValueError):
    """`train=True` was asked for without `mutable=["batch_stats"]`."""


class MissingExtra(ResNetJAXError, ImportError):
    """An optional dependency is absent; the message says which extra to install."""
