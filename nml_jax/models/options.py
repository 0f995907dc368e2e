"""Checks of the options that several models have. Each raises a UserError for a value that is not valid."""

from collections.abc import Iterable

from nml_jax.core.errors import UserError

NORMS = ("sync", "per_device")
REMAT = ("none", "block")
ATTENTION = ("", "xla", "cudnn")


def variant(name: str, valid: dict, model: str) -> str:
    """A key of `valid`, or "" for none of them."""
    if name and name not in valid:
        raise UserError(f"Unknown {model} variant {name!r}; valid: {', '.join(valid)}.")
    return name


def norm_rows(norm: str, rows: int) -> int:
    """`models.norm.BatchNorm`'s `rows`: 0 for "sync", the samples that share their statistics for "per_device"."""
    if norm not in NORMS:
        raise UserError(f"Unknown norm {norm!r}; valid: {', '.join(NORMS)}.")
    if (norm == "sync" and rows) or (norm == "per_device" and rows < 1):
        raise UserError(
            f"norm={norm!r} with norm_rows={rows}: 'per_device' needs norm_rows, the number of samples that share "
            "their statistics (1 or above), and 'sync' takes none. Correct config.model.options."
        )
    return rows


def rate(value: float, name: str) -> float:
    """A probability below one."""
    if not 0 <= value < 1:
        raise UserError(f"{name}={value} is not a probability below 1; valid: 0 <= {name} < 1.")
    return float(value)


def remat(value: str) -> bool:
    """Whether the backward computes each block again from its input, in place of keeping its activations."""
    if value not in REMAT:
        raise UserError(f"Unknown remat {value!r}; valid: {', '.join(REMAT)}.")
    return value == "block"


def choice(value: str, valid: Iterable[str], name: str) -> str:
    """One of `valid`."""
    if value not in valid:
        raise UserError(f"Unknown {name} {value!r}; valid: {', '.join(map(repr, valid))}.")
    return value


def attention(implementation: str, dtype: str) -> str:
    """The implementation of jax.nn.dot_product_attention, one of ATTENTION, that can compute in `dtype`."""
    choice(implementation, ATTENTION, "attention_implementation")
    if implementation == "cudnn" and dtype not in ("bfloat16", "float16"):
        raise UserError(f"cuDNN's attention takes bfloat16 or float16, not {dtype}; give dtype='bfloat16'.")
    return implementation
