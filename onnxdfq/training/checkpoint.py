"""A file from which a training goes on where it was broken off: tensors and JSON, nothing pickled."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from onnxdfq.errors import InputError
from onnxdfq.model_file.writing import atomic_write, make_folder

EVERY_S = 120.0
_FACTS = "onnxdfq"  # the one entry of the file's header


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds. tensors: by name, on the CPU. facts: what JSON can say."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoint:
    """Where one training keeps how far it is.

    Args:
        path: Of the file; its folder is there.
        key: Tells trainings apart: what was saved under another key is not taken.
        every: Seconds between two writings at least.
    """

    def __init__(self, path: Path, key: str, *, every: float = EVERY_S) -> None:
        self.path, self._key, self._every = path, key, every
        self._last = time.monotonic()

    @classmethod
    def of(cls, folder: Path | None, name: str, *, rests_on: Sequence[str | NDArray[Any]]) -> "Checkpoint | None":
        """The one of this name in a work folder, which is made; None without a folder.

        Args:
            folder: Where long stages keep how far they are.
            name: Of the file, without its suffix.
            rests_on: All that the training follows from.
        """
        if folder is None:
            return None
        make_folder(folder)
        digest = sha256(version("onnxdfq").encode())
        for part in rests_on:
            digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
        return cls(folder / f"{name}.safetensors", digest.hexdigest())

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._last >= self._every

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write beside, then rename. Raises OutputError, and leaves the last one, where the disk takes no more."""
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        header = {_FACTS: json.dumps({"key": self._key, **facts})}
        with atomic_write(self.path, force=True) as temporary:
            temporary.write_bytes(save(own, metadata=header))
        self._last = time.monotonic()

    def load(self) -> Saved | None:
        """What was saved last; None where nothing was, or under another key.

        Raises:
            InputError: The file is no checkpoint.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_FACTS])
                if facts.pop("key") != self._key:
                    return None
                return Saved(tensors={name: file.get_tensor(name) for name in file.keys()}, facts=facts)  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, AttributeError, OSError) as error:
            raise InputError(f"{self.path} is no checkpoint of onnxdfq; remove it, or name another folder.") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers, by "PARAMETER.KEY"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{place}.{key}": value
        for place, entries in state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives it back what `optimizer_tensors` told."""
    own = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})
