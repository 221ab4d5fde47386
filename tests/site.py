"""Hooks of mkdocs.yml: pages of the site that lie outside docs/, and links that lead out of it.

Documents stay where a forge looks for them (README.md, CONTRIBUTING.md, a model's card beside its weights)
and link to each other by relative paths. The site shows them as pages of its own; a link to any other file of
the repository loses its target there and keeps its words.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# file of the repository: page of the site
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "backbones/mini/README.md": "cards/glamm-mini.md",
    "backbones/videoglamm/mini/README.md": "cards/videoglamm-mini.md",
}
HOME = {page: path for path, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/."""
    from mkdocs.structure.files import File  # tests read this module without mkdocs

    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links between documents to the site's pages."""
    return turned(markdown, page.file.src_uri)


def turned(text: str, page: str) -> str:
    """The document with its links as the site has them; code stays as it is."""
    parts = CODE.split(text)
    return "".join(
        part if number % 2 else LINK.sub(lambda m: _link(m, page), part) for number, part in enumerate(parts)
    )


def _link(found: re.Match[str], page: str) -> str:
    picture, words, target = found.groups()
    path, mark, anchor = target.partition("#")
    if "://" in target or not path:
        return found[0]
    of_repository = posixpath.normpath(posixpath.join(posixpath.dirname(_file(page)), path))
    if of_repository in PAGES:
        there = PAGES[of_repository]
    elif of_repository.startswith("docs/"):
        there = of_repository.removeprefix("docs/")
    else:
        return words
    return f"{picture}[{words}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{mark}{anchor})"


def _file(page: str) -> str:
    """Where a page's document lies in the repository."""
    return HOME.get(page, f"docs/{page}")
