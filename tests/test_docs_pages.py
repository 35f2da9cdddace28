"""The documentation keeps its word: the tutorial's file is read by every party, verbs and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from device_runtime.config import settings
from tools import cli
from tools.configuration import dataset, read

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_the_tutorials_fleet_is_understood_by_coordinator_and_devices() -> None:
    file = read(DOCS / "tutorial-fleet.toml")
    assert file.coordinator.rounds == 150
    file.model.spec(dataset(file.model.dataset))
    for name in ("hub", "phone", "band"):
        assert settings(DOCS / "tutorial-fleet.toml", name).device.id == name


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(DOCS)) for p in PAGES])
def test_every_command_in_the_pages_exists(page: Path) -> None:
    root = typer.main.get_command(cli.build(cli.VERBS))
    for line in re.findall(r"^(?:sudo )?relief ([a-z][^\n#`]*)", page.read_text(), re.MULTILINE):
        words = line.split()
        command = root
        while hasattr(command, "commands") and words:
            assert words[0] in command.commands, f"{page.name}: relief {line}"
            command = command.commands[words.pop(0)]
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known | {"--help"}, f"{page.name}: relief {line}"


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(DOCS)) for p in PAGES])
def test_links_to_other_pages_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_concepts_have_a_picture_each() -> None:
    for name in ("blocks", "cohorts", "round", "budgets"):
        assert "![" in (DOCS / "concepts" / f"{name}.md").read_text()


@pytest.mark.timeout(180)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    told = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r'(?:src|href)="https?://(?!example)[^"]*\.(?:js|css|woff2?)', page), "nothing is loaded"
