"""Reading weights without running anything that a file brings along. Needs PyTorch."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.errors import PackagingError

State = dict[str, torch.Tensor]

# Where training scripts keep the weights beside an optimiser and counters.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_NAMED = 8
"""How many keys a message names of each kind."""


def read_state(path: Path) -> State:
    """The tensors of a .safetensors file or a PyTorch checkpoint, by their keys."""
    if not path.is_file():
        raise PackagingError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise PackagingError(f"{path}: not a .safetensors file, or damaged ({first_line(error)})") from error
    try:
        # weights_only reads tensors and plain containers; a pickle that names anything to be called is an error.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PackagingError(
            f"{path}: refused, it holds more than tensors, and loading the rest could run code of its author "
            f"({first_line(error)}). Ask for a state dict or a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise PackagingError(f"{path}: not a PyTorch checkpoint, or damaged ({first_line(error)})") from error
    return unwrap(content, path)


def unwrap(content: object, path: Path) -> State:
    """The state dict inside a training checkpoint, without the prefix that data-parallel training leaves."""
    while isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    named = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    if not named or not content:
        raise PackagingError(f"{path}: a state dict, names with tensors, is expected; found {type(content).__name__}")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def fit(network: nn.Module, state: State, source: Path) -> None:
    """Loads `state` into `network`, or names every kind of key that does not fit."""
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = misfits(wanted, found)
    # Quantised weights mean nothing without their scales.
    floating = {key for key, value in network.state_dict().items() if value.is_floating_point()}
    whole = [key for key, value in state.items() if key in floating and not value.is_floating_point()]
    if whole:
        problems.append(f"whole numbers where there should be fractions: {listed(whole)}")
    if problems:
        raise PackagingError(f"{source} does not fit: {'; '.join(problems)}")
    network.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})


def misfits(wanted: dict[str, tuple], found: dict[str, tuple]) -> list[str]:
    """One sentence each for keys that are missing, unexpected or of another shape. A missing counter is no loss."""
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [key for key in wanted if key in found and found[key] != wanted[key]]
    kinds = [
        ("missing", [f"{key} {list(wanted[key])}" for key in missing]),
        ("unexpected", [f"{key} {list(found[key])}" for key in unexpected]),
        ("of another shape", [f"{key} {list(found[key])} instead of {list(wanted[key])}" for key in reshaped]),
    ]
    return [f"{kind}: {listed(keys)}" for kind, keys in kinds if keys]


def listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
