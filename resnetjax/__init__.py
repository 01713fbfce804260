"""ResNets in pure JAX: every one that people hold weights for, converted and proven.

Example:
    >>> import resnetjax as rj
    >>> model, variables = rj.create("cifar_resnet20", rng=0)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnetjax.config import Labels, Preprocess, ResNetConfig
    from resnetjax.infer.compiled import compile_inference
    from resnetjax.infer.explain import explain
    from resnetjax.infer.export import export
    from resnetjax.infer.features import features
    from resnetjax.infer.predict import Prediction, predict
    from resnetjax.infer.predictor import Predictor
    from resnetjax.nn.resnet import ResNet
    from resnetjax.pretrained import Pretrained, Source
    from resnetjax.saving import save
    from resnetjax.weights.sources import names
    from resnetjax.zoo import create, load

__version__ = "0.1.0"

# Where each public name lives: imported when it is first used, so that `import resnetjax` costs
# nothing.
_HOMES = {
    "Labels": "config",
    "Prediction": "infer.predict",
    "Predictor": "infer.predictor",
    "Preprocess": "config",
    "Pretrained": "pretrained",
    "ResNet": "nn.resnet",
    "ResNetConfig": "config",
    "Source": "pretrained",
    "compile_inference": "infer.compiled",
    "create": "zoo",
    "explain": "infer.explain",
    "export": "infer.export",
    "features": "infer.features",
    "load": "zoo",
    "names": "weights.sources",
    "predict": "infer.predict",
    "save": "saving",
}

__all__ = [
    "Labels",
    "Prediction",
    "Predictor",
    "Preprocess",
    "Pretrained",
    "ResNet",
    "ResNetConfig",
    "Source",
    "compile_inference",
    "create",
    "explain",
    "export",
    "features",
    "load",
    "names",
    "predict",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
