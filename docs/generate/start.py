"""The first page of the site: the README, and what only the site has."""

from pathlib import Path

from docs.generate.links import links_of_the_site

README = Path(__file__).parents[2] / "README.md"
REFERENCE = """
## Reference

- [Commands](commands.md), with every option.
- [Methods](methods/index.md): the idea of each paper, settings, figures.
- [Targets](targets/index.md): what each runtime takes, and why.
- Python: [functions](api/functions.md), [classes](api/classes.md), [methods](api/methods.md), [passes](api/passes.md).
"""


def start_page() -> str:
    """The README's links lead to the site's pages."""
    return links_of_the_site(README.read_text(encoding="utf-8"), "") + REFERENCE
