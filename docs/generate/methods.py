"""The pages of methods: what a person wrote of each, and its settings as they are."""

from pathlib import Path

from docs.generate.markdown import code, plain, table
from onnxdfq.methods import load_method
from onnxdfq.recipe.names import method_names
from onnxdfq.report.registry import describe_method, describe_methods

WRITTEN = Path(__file__).parents[1] / "methods"
AUTO = """Without `--method` it is `auto`: what the model allows, told in one line with its reason. That is `dgh` where
the model carries BatchNormalization, `psaq` for a vision transformer without it, `dfmpc` where `--bits` has two widths
(`w2/6`), else `dead-leaves`."""
OTHERS = """`zeroq` and `noise` are there to compare with. `gdfq` and `edfq` train a generator, and the quantized
network on its images: that is for hours rather than minutes."""


def method_page(name: str) -> str:
    """Idea and figures out of `docs/methods/NAME.md` where that is there, then needs and settings."""
    found, own, kind = describe_method(name), WRITTEN / f"{name}.md", load_method(name)
    idea = own.read_text(encoding="utf-8") if own.exists() else f"# {name}\n\n{plain(found['summary'])}\n"
    rows = [(code(f"{name}.{one['name']}"), code(one["kind"]), code(one["default"])) for one in found["settings"]]
    parts = [
        idea,
        f"## Settings\n\nFrom Python it is `{kind.__name__}`, of `{kind.__module__}`. "
        f"Needs: {plain(found['needs']) or 'nothing'}.",
        *map(plain, found["description"].split("\n\n")),
        "Each is set by `--set METHOD.FIELD=VALUE`, in a recipe's table of the method's name, or from Python as an "
        "argument of the class."
        if rows
        else "It has none of its own.",
    ]
    if rows:
        parts.append(table(["setting", "values", "default"], rows))
    return "\n\n".join(parts) + "\n"


def methods_index() -> str:
    """All methods by name, with what each needs."""
    rows = [
        (f"[{one['name']}]({one['name']}.md)", plain(one["needs"]) or "–", plain(one["summary"]))
        for one in describe_methods()
    ]
    return f"# Methods\n\n{AUTO}\n\n" + table(["method", "needs", "what it does"], rows) + f"\n\n{OTHERS}\n"


def method_pages() -> dict[str, str]:
    """By the page's path, what stands on it."""
    return {"methods/index.md": methods_index()} | {f"methods/{name}.md": method_page(name) for name in method_names()}
