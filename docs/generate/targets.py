"""The pages of targets, from their TOML files: the numbers, and the comments that say why."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from typing import Any

from docs.generate.markdown import code, plain, table
from onnxdfq.recipe.names import TARGETS, registered, target_names
from onnxdfq.report.registry import describe_targets
from onnxdfq.targets import load_target
from passes.target.operator_rule import OperatorRule
from passes.target.target import Target

APART = ("name", "title", "verified", "sources", "operators")


def target_page(name: str) -> str:
    """What a runtime takes, why, what it does with each operator, and what that rests on."""
    target, why = load_target(name), notes(source(name))
    basis = (
        "Tests hold these rules against the runtime itself."
        if target.verified
        else "These rules rest on the sources below; no test runs the runtime itself."
    )
    keys = [one.name for one in fields(Target) if one.name not in APART]
    values = [(code(key), code(_shown(getattr(target, key))), plain(why.get(key, ""))) for key in keys]
    rules = []
    for key, rule in target.operators.items():
        said = filter(None, (rule.reason, rule.advice, why.get(f"operators.{key}", "")))
        rules.append((code(key), _verdict(rule), plain("; ".join(text.rstrip(".") for text in said))))
    parts = [
        f"# {name}: {plain(target.title)}",
        basis,
        f"```sh\nonnxdfq compress model.onnx --target {name}\n```",
        "## What it takes\n\n[What the keys mean](index.md#what-the-keys-mean)",
        table(["key", "value", "why"], values),
    ]
    if rules:
        parts += [
            "## Operators\n\nAn operator that has no line here is computed in float. "
            "[What the keys mean](index.md#what-the-keys-of-an-operator-mean)",
            table(["operator", "on integers", "notes"], rules),
        ]
    parts += ["## Sources", "\n".join(f"- {plain(one)}" for one in target.sources)]
    return "\n\n".join(parts) + "\n"


def targets_index() -> str:
    """All targets, and what the keys of their files mean."""
    rows = [
        (f"[{one['name']}]({one['name']}.md)", plain(one["title"]), plain(one["checked"])) for one in describe_targets()
    ]
    parts = [
        "# Targets",
        "`--target` says what to write for, `ort` by default. Repeat it, and one synthesis gives a file for each: "
        "`model.w8a8.ort.onnx`, `model.w8a8.qnn.onnx`.",
        "```sh\nonnxdfq compress model.onnx --target ort --target qnn\n```",
        "A target is a TOML file; `--target FILE.toml` takes one of yours, and a package adds one by the entry point "
        "`onnxdfq.targets`. One that does not take the bits says which it takes, before any work.",
        table(["target", "title", "rules"], rows),
        f"## What the keys mean\n\n{_keys(Target)}",
        f"## What the keys of an operator mean\n\n{_keys(OperatorRule)}",
    ]
    return "\n\n".join(parts) + "\n"


def target_pages() -> dict[str, str]:
    """By the page's path, what stands on it."""
    return {"targets/index.md": targets_index()} | {f"targets/{name}.md": target_page(name) for name in target_names()}


def source(name: str) -> str:
    """The text of a target's file."""
    return files(registered(TARGETS)[name].module).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def notes(text: str) -> dict[str, str]:
    """The comments of a TOML file, by the key (or the table, `operators.Conv`) that each stands above."""
    found: dict[str, str] = {}
    comment: list[str] = []
    head = ""
    for line in text.splitlines():
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        if opened := re.fullmatch(r"\[(.+)\]", line):
            head = opened[1].replace('"', "")
            key: str | None = head
        else:
            named = re.match(r"([A-Za-z0-9_-]+) *=", line)
            key = None if named is None else f"{head}.{named[1]}" if head else named[1]
        if key and comment:
            found[key] = " ".join(comment)
        comment = []
    return found


def meanings(kind: type) -> dict[str, str]:
    """By field, what the docstring of a dataclass says of it: `field: text`, or `one, other: text`."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    names = "|".join(one.name for one in fields(kind))
    _, *parts = re.split(rf"(?<=[.;] )((?:{names})(?:, (?:{names}))*): ", text)
    return {
        name: said.strip() for group, said in zip(parts[::2], parts[1::2], strict=True) for name in group.split(", ")
    }


def _keys(kind: type) -> str:
    return table(["key", "meaning"], [(code(name), plain(said)) for name, said in meanings(kind).items()])


def _verdict(rule: OperatorRule) -> str:
    """The form that an integer kernel takes, as far as it is not the usual one; or one verdict for every form."""
    if rule.verdict != "judged":
        return rule.verdict
    usual, told = OperatorRule(), ("verdict", "reason", "advice")
    own = {one.name: getattr(rule, one.name) for one in fields(rule) if one.name not in told}
    return "; ".join(f"{key} {code(_shown(value))}" for key, value in own.items() if value != getattr(usual, key))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {kind}" for key, kind in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
