"""Errors that several readers of weight files raise."""

from pathlib import Path

from cdl_jax.errors import UserError

AS_SAFETENSORS = "save the state dict alone as .safetensors (safetensors.torch.save_file) and load that"


def duplicate_error(path: Path, name: str, first: str, second: str) -> UserError:
    """Returns the error for a parameter that two tensors of a file give."""
    return UserError(
        f"{path} has two tensors for {name}: {shorten(first)} and {shorten(second)}: save the network alone, each "
        "parameter once"
    )


def quantized_error(path: Path, why: str) -> UserError:
    """Returns the error for a file with quantized numbers."""
    return UserError(f"{path} is quantized ({shorten(why)}): take the checkpoint in float32, float16 or bfloat16")


def shorten(value: object) -> str:
    """Returns the first 200 characters of a value's text, on one line."""
    return " ".join(str(value).split())[:200]
