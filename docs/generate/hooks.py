"""What mkdocs calls: pages that are generated join the others, folders of pages the navigation; links turn inward."""

from posixpath import dirname, join
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate.links import links_of_the_site
from docs.generate.pages import generated_pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and put each folder's pages where the navigation names the folder."""
    for path, text in generated_pages().items():
        if (written := files.get_file_from_path(path)) is not None:
            files.remove(written)
        files.append(File.generated(config, path, content=text))
    paths = [file.src_uri for file in files.documentation_pages()]
    config.nav = [_filled(entry, paths) for entry in config.nav or []]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to the site's pages."""
    return links_of_the_site(markdown, join("docs", dirname(page.file.src_uri)).rstrip("/"))


def _filled(entry: Any, paths: list[str]) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, inside),) = entry.items()
    if not (isinstance(inside, str) and inside.endswith("/")):
        return entry
    found = sorted(path for path in paths if path.startswith(inside))
    return {title: sorted(found, key=lambda path: not path.endswith("/index.md"))}
