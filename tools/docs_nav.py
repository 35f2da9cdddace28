"""The order of the documentation's pages: what is listed here first, every other page after it by its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ORDER: dict[str, list[str]] = {
    "Begin": ["index.md", "tutorial.md"],
    "Concepts": ["concepts/blocks.md", "concepts/cohorts.md", "concepts/round.md", "concepts/budgets.md"],
    "How to": ["howto/jetson.md", "howto/broker.md", "howto/sensors.md", "howto/model.md", "howto/strategy.md"],
    "Operating": ["operating.md", "broker.md", "device.md", "flash.md", "reliability.md", "exit-codes.md"],
    "Results": ["results.md", "recordings.md"],
}


def on_config(config: Any) -> Any:
    """mkdocs' hook: set the navigation from the pages that exist."""
    docs = Path(config["docs_dir"])
    there = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    nav: list[dict[str, list[str]]] = []
    for title, pages in ORDER.items():
        if known := [page for page in pages if page in there]:
            nav.append({title: known})
    listed = {page for pages in ORDER.values() for page in pages}
    for folder, title in (("reference", "Reference"), ("decisions", "Decisions")):
        if pages := sorted(p for p in there - listed if p.startswith(f"{folder}/")):
            nav.append({title: pages})
    rest = sorted(p for p in there - listed if not p.startswith(("reference/", "decisions/")))
    config["nav"] = [*nav, *({"More": rest},)] if rest else nav
    return config
