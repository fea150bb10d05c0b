"""Methods: a paper is one file here (or one folder), and `passes/NAME` where it has a half that edits ONNX.

No other module names a method: they are found by their entry points, see `onnxdfq.methods.method`.
"""

from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxdfq.errors import DfqError, InputError
from onnxdfq.methods.method import FloatModel, Measurement, Method, Need, Note, Run
from onnxdfq.recipe.names import AUTO, METHODS, method_names, one_of, registered
from onnxdfq.recipe.reading import checked_fields
from onnxdfq.recipe.recipe import Recipe

if TYPE_CHECKING:
    from onnxdfq.methods.dafl import Dafl
    from onnxdfq.methods.dead_leaves import DeadLeaves
    from onnxdfq.methods.dfmpc.dfmpc import Dfmpc
    from onnxdfq.methods.dfq.dfq import Dfq
    from onnxdfq.methods.dgh.dgh import Dgh
    from onnxdfq.methods.enhancing_dfq import Edfq
    from onnxdfq.methods.gdfq import Gdfq
    from onnxdfq.methods.genie import Genie
    from onnxdfq.methods.mixmix.deep_inversion import DeepInversion
    from onnxdfq.methods.mixmix.mixmix import Mixmix
    from onnxdfq.methods.noise import Noise
    from onnxdfq.methods.psaq import Psaq
    from onnxdfq.methods.zeroq import ZeroQ

_HOMES = {
    "Dafl": "dafl",
    "DeadLeaves": "dead_leaves",
    "DeepInversion": "mixmix.deep_inversion",
    "Dfmpc": "dfmpc.dfmpc",
    "Dfq": "dfq.dfq",
    "Dgh": "dgh.dgh",
    "Edfq": "enhancing_dfq",
    "Gdfq": "gdfq",
    "Genie": "genie",
    "Mixmix": "mixmix.mixmix",
    "Noise": "noise",
    "Psaq": "psaq",
    "ZeroQ": "zeroq",
}

__all__ = [
    "Dafl",
    "DeadLeaves",
    "DeepInversion",
    "Dfmpc",
    "Dfq",
    "Dgh",
    "Edfq",
    "FloatModel",
    "Gdfq",
    "Genie",
    "Measurement",
    "Method",
    "Mixmix",
    "Need",
    "Noise",
    "Note",
    "Psaq",
    "Run",
    "ZeroQ",
    "choose_method",
    "configured",
    "load_method",
    "method_of",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def load_method(name: str) -> type[Method]:
    """The class of a registered method.

    Raises:
        InputError: there is no such method; the message suggests the nearest.
        DfqError: the package that registered it is at fault.
    """
    one_of("method", name, [*method_names(), AUTO], field="method")
    if name == AUTO:
        raise InputError("auto is no method of its own: it stands for what the model allows.", field="method")
    try:
        found = registered(METHODS)[name].load()
    except Exception as error:  # whatever a stranger's package raises
        where = registered(METHODS)[name].value
        raise DfqError(f"The method {name} cannot be imported from {where}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)) or found.name != name:
        raise DfqError(f"{registered(METHODS)[name].value} is no Method called {name}.")
    return found


def configured(kind: type[Method], recipe: Recipe) -> Method:
    """A method with the values of its effort, of the recipe's own fields that it has (steps, batch_size), and of its
    table in the recipe, each over the one before.

    Raises:
        InputError: a field or a value is none.
    """
    names = {field.name for field in fields(kind)}
    general = {key: getattr(recipe, key) for key in ("steps", "batch_size")}
    values: dict[str, Any] = {**kind.efforts.get(recipe.effort, {})}
    values |= {key: value for key, value in general.items() if value is not None and key in names}
    own = recipe.settings.get(kind.name, {})
    try:
        return kind(**values | checked_fields(kind, own, where=f"the settings of {kind.name}"))
    except InputError as error:
        raise InputError(str(error), field="settings") from error


def method_of(recipe: Recipe) -> Method | None:
    """The method that a recipe names, configured; None for "auto", which needs the model.

    Raises:
        InputError: there is no such method, or its settings are at fault (those of others than the chosen, too).
    """
    for name in recipe.settings:
        configured(load_method(name), recipe)
    return None if recipe.method == AUTO else configured(load_method(recipe.method), recipe)


def choose_method(recipe: Recipe, met: frozenset[Need]) -> tuple[Method, str]:
    """What "auto" stands for: of all registered methods whose needs are met, the one with the greatest priority.

    Args:
        met: what the model and the recipe offer.

    Returns:
        The method, and a sentence that says which it is and why.
    """
    kinds = sorted(map(load_method, method_names()), key=lambda kind: (-kind.priority, kind.name))
    open_to_auto = [kind for kind in kinds if kind.priority > 0]
    if Need.TWO_WIDTHS in met:
        open_to_auto = [kind for kind in open_to_auto if Need.TWO_WIDTHS in kind.needs]
    chosen = next(kind for kind in open_to_auto if kind.needs <= met)
    said = f"method {chosen.name}: {chosen.summary}"
    if chosen.needs:
        return configured(chosen, recipe), f"{said}; chosen as {' and '.join(sorted(chosen.needs))}."
    better = [kind for kind in open_to_auto if kind.priority > chosen.priority and Need.TWO_WIDTHS not in kind.needs]
    lacking = "; ".join(f"{kind.name} would need that {' and '.join(sorted(kind.needs - met))}" for kind in better)
    advice = (
        "Where BatchNormalization was folded, export with it kept (onnxdfq.export); or give images of your own "
        "(--calibration)."
    )
    return configured(chosen, recipe), f"{said}. {lacking}. {advice}"
