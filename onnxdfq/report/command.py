"""The command line that repeats a run."""

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from onnxdfq.pipeline.request import Request
from onnxdfq.recipe.recipe import Recipe


def compress_command(request: Request) -> str:
    """As it is typed; what was given in memory stands there as FILE."""
    words = ["onnxdfq", "compress", str(request.source), *_recipe_words(request.recipe)]
    for flag, given in (("--calibration", request.calibration), ("--evaluate", request.evaluation)):
        if given is not None:
            words += [flag, str(given) if isinstance(given, str | Path) else "FILE"]
    for member in request.zoo:
        words += ["--zoo", str(member.path)]
    if request.pins:
        words += ["--plan", "FILE"]
    for name, shape in request.input_shape.items():
        words += ["--input-shape", (f"{name}=" if name else "") + ",".join(map(str, shape))]
    for name, what in request.inputs.items():
        words += ["--input", f"{name}={what}"]
    words += ["--dynamic-batch"] if request.dynamic_batch else []
    if request.device != "auto":
        words += ["--device", request.device]
    if len(request.models) == 1:
        words += ["-o", str(request.models[0])]
    return shlex.join(words)


def _recipe_words(recipe: Recipe) -> Iterator[str]:
    """The settings that are not the default."""
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value == default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "settings":
            for method, table in value.items():
                for name, entry in table.items():
                    yield from ("--set", f"{method}.{name}={_text(entry)}")
        elif isinstance(value, tuple):
            for entry in value:
                yield from (flag, _text(entry))
        elif isinstance(value, bool):
            yield flag if value else f"--no-{flag.removeprefix('--')}"
        else:
            yield from (flag, _text(value))


def diagnose_command(path: str, **given: Any) -> str:
    """Of a diagnosis. given: its options; what is None or the default is left out."""
    words = ["onnxdfq", "diagnose", path]
    for name, value in given.items():
        if value:
            words += [f"--{name}", str(value) if isinstance(value, str | int | Path) else "FILE"]
    return shlex.join(words)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
