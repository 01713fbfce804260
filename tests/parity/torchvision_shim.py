"""Makes torchvision importable where its compiled operators cannot be loaded.

PyPI's torchvision is built for CUDA; beside a CPU build of torch its `_C.so` does not load, and
`torchvision/_meta_registrations.py` then fails on operators that nobody declared. Models and
transforms use none of them, so declaring their names is enough. Call `install()` before importing
torchvision, timm or Transformers' image processors.
"""

import importlib.util

import torch

OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "deform_conv2d",
    "box_iou_rotated",
    "_roi_align_backward",
    "_roi_pool_backward",
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
    "_deform_conv2d_backward",
    "_cuda_version",
)

# An operator lives as long as the library object that declared it.
_LIBRARIES: list[torch.library.Library] = []


def install() -> None:
    """Declares torchvision's operators, unless this was done or its own library declares them.

    They are declared, not implemented: calling one (box suppression, region pooling) raises torch's
    NotImplementedError.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if _LIBRARIES or hasattr(torch.ops.torchvision, "nms"):
        return
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        raise ModuleNotFoundError("torchvision is not installed in this environment")
    if _compiled_library_loads(specification.origin):
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(f"{operator}(Tensor input) -> Tensor")
    _LIBRARIES.append(library)


def _compiled_library_loads(package_init: str) -> bool:
    try:
        torch.ops.load_library(package_init.replace("__init__.py", "_C.so"))
    except (OSError, ImportError):
        return False
    return True
