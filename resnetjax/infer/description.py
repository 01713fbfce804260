"""What an exported file says about its net beside the function: the same JSON in every format."""

import json
from dataclasses import asdict, dataclass, field

from resnetjax.config import Labels, OutputActivation, Preprocess
from resnetjax.errors import ConfigError
from resnetjax.fields import check_types, construct


@dataclass(frozen=True, kw_only=True)
class Description:
    """What goes into an exported function, what comes out, and where it is from.

    Attributes:
        preprocess: How an image becomes the pixels that go in; the normalisation is in the
            function.
        labels: What the outputs mean, or None where that is unknown.
        activation: What turns the outputs into predictions: the labels' activation, and softmax
            where there are none.
        num_classes: Number of outputs; 0 where the net has no head, and gives pooled features.
        source: Where the weights came from, as `Source` says it.
        versions: Of the packages that wrote the file.
        platforms: Where a StableHLO function runs; in other formats that is the runtime's affair.

    Raises:
        ConfigError: A value is not allowed; the message names field, value and what is.
    """

    preprocess: Preprocess
    labels: Labels | None = field(repr=False)
    activation: OutputActivation
    num_classes: int
    source: dict
    versions: dict
    platforms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)

    def to_json(self) -> str:
        """The JSON text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Description":
        """What `to_json` wrote.

        Raises:
            ConfigError: It is no JSON, or a field is unknown, missing or not allowed.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError("the description is no JSON object")
        return construct(cls, values)
