"""Every error that resnetjax raises on purpose, and its one warning.

Each is also the built-in error that a caller would expect (`ValueError`, `LookupError`, ...), so
that code which knows nothing of resnetjax still catches the right thing.
"""


class ResNetJAXError(Exception):
    """Base class of every error below."""


class ConfigError(ResNetJAXError, ValueError):
    """A configuration field holds what is not allowed; the message names field, value, choices."""


class UnknownName(ResNetJAXError, LookupError):
    """No architecture, published weight, dialect or label goes by this name."""


class UnsupportedFile(ResNetJAXError, ValueError):
    """The file is well-formed, as far as was read, but holds what resnetjax does not read."""


class CorruptFile(ResNetJAXError, ValueError):
    """The file is truncated, inconsistent or not what its format demands."""


class UnsafeWeights(ResNetJAXError, ValueError):
    """A weight file asks to run code, to open other files, or for memory beyond its size."""


class DownloadFailed(ResNetJAXError, OSError):
    """A file could not be fetched; the message names address and reason, and what to do."""


class UploadFailed(ResNetJAXError, OSError):
    """A net could not be pushed; the message names where to, why, and what to do."""


class DigestMismatch(ResNetJAXError, ValueError):
    """A file is not what was published, or what was fetched at first; names both digests."""


class WeightsMismatch(ResNetJAXError, ValueError):
    """Arrays do not fit the model; the message lists what is missing, unexpected, mis-shaped."""


class BadImage(ResNetJAXError, ValueError):
    """An image cannot be decoded, or is refused before decoding (format, number of pixels)."""


class MissingExtra(ResNetJAXError, ImportError):
    """An optional package is not installed; the message says which extra to install."""


class DataCorrupt(ResNetJAXError, ValueError):
    """More images could not be read than a run puts up with; the message lists the first."""


class DataStalled(ResNetJAXError, RuntimeError):
    """Training data does not come: a reading worker hangs, or dies again and again."""


class BatchNormError(ResNetJAXError, ValueError):
    """`train=True` was asked for without `mutable=["batch_stats"]`."""


class NonFinite(ResNetJAXError, FloatingPointError):
    """A value that must be finite is NaN or infinite; the message names where."""


class SaveFailed(ResNetJAXError, OSError):
    """A checkpoint could not be written; what was saved before is untouched."""


class CheckpointCorrupt(ResNetJAXError, ValueError):
    """Checkpoints are there and none can be trusted; the message lists each and why."""


class AssumptionWarning(UserWarning):
    """A file left something open, and its commonest reading was taken."""
