"""All pages that are generated."""

from docs.generate.api import api_pages
from docs.generate.commands import commands_page
from docs.generate.methods import method_pages
from docs.generate.notebooks import notebook_pages
from docs.generate.start import start_page
from docs.generate.targets import target_pages


def generated_pages() -> dict[str, str]:
    """By the page's path, what stands on it; those of methods hold what a person wrote, too."""
    one = {"index.md": start_page(), "commands.md": commands_page()}
    return one | method_pages() | target_pages() | notebook_pages() | api_pages()
