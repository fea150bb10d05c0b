"""What callers of the Python door give, settled: recipes, targets, and models as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.methods import method_of
from onnxdfq.methods.method import Method
from onnxdfq.recipe.recipe import Recipe
from onnxdfq.recipe.zoo import Member, read_zoo
from onnxdfq.scratch import scratch_folder
from onnxdfq.targets import load_target
from passes.target.target import Target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    ModelLike = Path | str | onnx.ModelProto | ir.Model
    ZooLike = Sequence[ModelLike | Member] | None


def settled_recipe(
    recipe: Recipe | None, method: str | Method | None, *, where: str, **given: Any
) -> tuple[Recipe, Method | None]:
    """The recipe with what was given over it, and its method; None for what the model allows."""
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(method, Method):
        settled = recipe.changed({"method": method, **given}, where=where)
        return settled, method_of(settled)
    own = {field.name: getattr(method, field.name) for field in fields(method)}
    settled = recipe.changed(given, where=where)
    method_of(settled)  # settings of other methods are looked at, too
    return replace(settled, method=method.name, settings={**settled.settings, method.name: own}), method


def target_names(target: str | Target | Sequence[str | Target] | None) -> tuple[str, ...] | str | None:
    """The names of targets that are given by name, by path or as objects; a name and None as they are."""
    if target is None or isinstance(target, str):
        return target
    several = [target] if isinstance(target, Target) else target
    return tuple(one.name if isinstance(one, Target) else one for one in several)


def chosen_targets(target: str | Target | Sequence[str | Target] | None, recipe: Recipe) -> list[Target]:
    """Those that the recipe names, objects as they are given."""
    several = [target] if isinstance(target, Target) else () if target is None or isinstance(target, str) else target
    objects = {one.name: one for one in several if isinstance(one, Target)}
    return [objects.get(name) or load_target(name) for name in recipe.target]


@contextmanager
def as_file(model: ModelLike) -> Iterator[Path]:
    """A path is itself; a model in memory lies in a temporary folder, where the loader's checks see it as any file."""
    if isinstance(model, str | Path):
        yield Path(model)
        return
    import onnx_ir as ir

    with scratch_folder() as scratch:
        path = scratch / "model.onnx"
        ir.save(model if isinstance(model, ir.Model) else ir.from_proto(model), path)
        yield path


@contextmanager
def members_of(zoo: ZooLike) -> Iterator[tuple[Member, ...]]:
    """Those of a zoo; models in memory lie in temporary folders."""
    with ExitStack() as stack:
        several = [zoo] if isinstance(zoo, str | Path) else zoo or ()
        yield read_zoo([one if isinstance(one, Member) else stack.enter_context(as_file(one)) for one in several])
