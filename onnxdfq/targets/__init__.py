"""Targets: each is a TOML file in this folder."""

import tomllib
from importlib.resources import files

from onnxdfq.choices import one_of
from passes.target import Target


def target_names() -> list[str]:
    """All targets, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def load_target(name: str) -> Target:
    """The target of this name. Raises InputError that suggests the nearest when there is none."""
    one_of("target", name, target_names())
    table = tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    return Target(**table | {"fused_activations": tuple(table["fused_activations"])})
