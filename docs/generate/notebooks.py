"""The notebooks of `samples/` as pages: they are kept without outputs, and so they are shown."""

import json
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "samples"


def notebook_page(path: Path) -> str:
    """Text as it stands, code as code."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    return "\n\n".join([parts[0], f"*This page is `samples/{path.name}`.*", *parts[1:]]) + "\n"


def notebook_pages() -> dict[str, str]:
    """By the page's path, what stands on it."""
    return {f"notebooks/{path.stem}.md": notebook_page(path) for path in sorted(SAMPLES.glob("*.ipynb"))}
