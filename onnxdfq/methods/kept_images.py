"""Images that an earlier run made of the same model with the same settings, from the work folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

from onnxdfq.images.images import Images
from onnxdfq.model_file import fillings, inputs
from onnxdfq.model_file.untrusted import model_hash
from onnxdfq.work.checkpoint import Checkpoint, Saved, shared

if TYPE_CHECKING:
    from onnxdfq.methods.method import FloatModel, Making, Method, Run
    from onnxdfq.recipe.zoo import Member

TABLES = ("pixels", "pictures", "labels")
OTHERS = "other:"
"""In front of an input's name."""


def images_checkpoint(method: Method, model: FloatModel, count: int, run: Run) -> Checkpoint | None:
    """Where images are kept; None without a work folder."""
    if run.work is None:
        return None
    return run.checkpoint("images", *_rest_on(method, model, count, run), str(run.shard))


def shard_facts(method: Method, model: FloatModel, count: int, run: Run) -> dict[str, str]:
    """What the provenance of a shard says, so that it is not merged with what does not belong to it."""
    digest = sha256("\n".join(_rest_on(method, model, count, run)).encode()).hexdigest()
    return {"model": model.digest[:16], "recipe": digest[:16], "onnxdfq": version("onnxdfq")}


def identity_of_zoo(zoo: Sequence[Member]) -> list[str]:
    """What tells the networks of a zoo, and how they look at images, from others."""
    return [f"{model_hash(member.path)} {member.normalize} {member.order}" for member in zoo]


def _rest_on(method: Method, model: FloatModel, count: int, run: Run) -> tuple[str, ...]:
    """All that images follow from: the models that make them, what these are fed, the method's settings, seed and
    count; not bits, targets, or what else is done with them."""
    import torch

    zoo = identity_of_zoo(run.zoo)
    filled = fillings(model.graph)
    fed = [f"{spec} {filled[spec.name]}" for spec in inputs(model.graph)]
    drawn = f"{count} {run.recipe.seed} {model.normalization}"
    return model.digest, *zoo, *fed, repr(method), drawn, str(torch.__version__)


def kept_images(making: Making, make: Callable[[], Images], tell: Callable[[str], None]) -> Images:
    """The images that are kept, which is told, or else those that are made, which are kept then. Several workers all
    get them.

    Raises:
        InputError, OutputError: The checkpoint cannot be read, or written.
        WorkerError: Another worker failed or hangs.
    """
    checkpoint = making.checkpoint
    if (saved := shared(checkpoint, making.workers, done=True)) is not None:
        if checkpoint is not None:
            tell(f"The images are those of an earlier run, from {checkpoint.path}.")
        return _from_saved(saved)
    if checkpoint is None:
        return make()
    import torch

    images = make()
    arrays = {name: array for name in TABLES if (array := getattr(images, name)) is not None}
    arrays |= {OTHERS + name: array for name, array in images.others.items()}
    facts = {"method": images.method, "seed": images.seed, "provenance": images.provenance}
    checkpoint.save({name: torch.from_numpy(array) for name, array in arrays.items()}, facts, done=True)
    return images


def _from_saved(saved: Saved) -> Images:
    arrays = {name: tensor.numpy() for name, tensor in saved.tensors.items()}
    others = {name.removeprefix(OTHERS): array for name, array in arrays.items() if name.startswith(OTHERS)}
    return Images(**{name: arrays.get(name) for name in TABLES}, others=others, **saved.facts)  # type: ignore[arg-type]
