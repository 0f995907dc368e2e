"""torchvision, timm and open_clip for tests, also where torchvision's compiled operators do not load.

Its wheels are built for CUDA; on a machine without it, its models and transforms work once two of the operators are
declared. Nothing here runs them.
"""

import sys
from types import ModuleType

import pytest

_kept = []  # a torch.library.Library declares for as long as it lives


def torchvision() -> ModuleType:
    """torchvision, or the test is skipped."""
    torch = pytest.importorskip("torch")
    try:
        import torchvision
    except ModuleNotFoundError:
        pytest.skip("needs torchvision: make test-peers installs it")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _kept[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def timm() -> ModuleType:
    """timm, or the test is skipped."""
    torchvision()
    return pytest.importorskip("timm")


def open_clip() -> ModuleType:
    """open_clip, or the test is skipped."""
    timm()
    return pytest.importorskip("open_clip")
