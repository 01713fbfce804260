"""Several processes as one: what one of them raises, all of them raise."""

from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnetjax import errors
from resnetjax.errors import ResNetJAXError

_MESSAGE_BYTES = 4096
T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Does what every process does at this point; what one of them raises, all raise."""
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
    try:
        result = action()
    except Exception as error:  # whatever it is, the others must not wait for this process
        failure = error
    text = f"{type(failure).__name__}:{failure}" if failure else ""
    message = np.frombuffer(text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0"), np.uint8)
    everyone = multihost_utils.process_allgather(message)
    if failure is not None:
        raise failure
    for index, row in enumerate(everyone):
        kind, _, text = row.tobytes().rstrip(b"\0").decode(errors="replace").partition(":")
        if kind:
            raise getattr(errors, kind, ResNetJAXError)(f"process {index}: {text}")
    return cast(T, result)
