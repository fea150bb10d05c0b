"""The pages of the Python interface: which names there are; mkdocstrings fills in their docstrings."""

from collections.abc import Iterable

import onnxdfq
import onnxdfq.methods
import passes

ROOM = "::: {path}\n    options:\n      heading_level: 2\n"


def api_pages() -> dict[str, str]:
    """By the page's path, what stands on it."""
    names = sorted(set(onnxdfq.__all__) - set(onnxdfq.methods.__all__))
    functions = [name for name in names if name.islower()]
    classes = [name for name in names if not name.islower()]
    methods, edits = onnxdfq.methods.__all__, passes.__all__
    return {
        "api/functions.md": _page("Functions", "The commands, with arrays and objects too.", "onnxdfq", functions),
        "api/classes.md": _page("Classes", "What goes in and what comes out.", "onnxdfq", classes),
        "api/methods.md": _page("Methods", "Methods as objects, and what one is.", "onnxdfq.methods", methods),
        "api/passes.md": _page("Passes", "Graph passes run on onnx-ir models, without torch.", "passes", edits),
    }


def _page(title: str, about: str, module: str, names: Iterable[str]) -> str:
    return "\n".join([f"# {title}\n\n{about}\n", *(ROOM.format(path=f"{module}.{name}") for name in names)])
