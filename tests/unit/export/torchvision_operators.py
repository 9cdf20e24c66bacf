"""torchvision beside a CPU build of torch: PyPI has only its CUDA build, whose operators are then missing at import.

open_clip needs nothing of torchvision but transforms of PIL pictures, so two declared operators are all it takes. This
is for tests: a user's torch and torchvision come from one index.
"""

import sys

import torch

_KEPT: list[torch.library.Library] = []


def make_torchvision_importable() -> None:
    """Import torchvision, declaring the operators that it looks for if they are missing."""
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        # The declarations live as long as the library object.
        _KEPT.append(library)
        import torchvision  # noqa: F401
