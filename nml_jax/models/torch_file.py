"""Torch weights on disk -> arrays by name. PyTorch is needed for its own format only, not for safetensors."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nml_jax.core.errors import UserError

TORCH = (".pth", ".pt", ".tar", ".bin")
# Where a training checkpoint keeps the weights (timm and torchvision: state_dict, model).
WRAPPERS = ("state_dict", "model")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a .safetensors file, or in a .pth, .pt, .tar or .bin of torch.save's.

    A training checkpoint is unwrapped ("state_dict" or "model"), and DistributedDataParallel's "module." is taken off
    the names. bfloat16 becomes float32. A torch file is read without running code from it (`weights_only`).

    Raises:
      UserError: there is no such file, it is damaged or holds no state dict, it is a TorchScript archive, or a torch
        file and PyTorch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path} to read torch weights from.")
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a complete safetensors file: {error}.") from None
    elif path.suffix in TORCH:
        tensors = _torch_arrays(path)
    else:
        raise UserError(f"{path} is no weights file; valid endings: .safetensors, {', '.join(TORCH)}.")
    tensors = {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in tensors.items()}
    return {name.removeprefix("module."): x for name, x in tensors.items()}


def _torch_arrays(path: Path) -> dict[str, np.ndarray]:
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive (a program with its weights, as OpenAI publishes CLIP), not a state "
            'dict. If you trust it, convert it once: python -c "import torch; '
            f"torch.save(torch.jit.load('{path}', map_location='cpu').state_dict(), '{path.stem}_state.pth')\"."
        )
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path} is in PyTorch's own format: install torch, or convert it to .safetensors where torch is."
        ) from None
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common class for what a file can be
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"torch.load(weights_only=True) cannot read {path} ({reason}). If it is whole and you trust it, save its "
            "state_dict alone, with tensors only."
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(x, torch.Tensor) for x in content.values()):
        raise UserError(
            f"{path} holds no state dict (names and tensors), also not under {' or '.join(WRAPPERS)}."
        )
    return {
        name: (x.float() if x.dtype is torch.bfloat16 else x).detach().numpy() for name, x in content.items()
    }


def _is_torchscript(path: Path) -> bool:
    """Whether it holds a program's constants; both kinds are zip files with one folder, and only these have them."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
