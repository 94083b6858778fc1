"""README and docs: links lead somewhere, commands parse, examples run."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from rasp.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_commands_of_the_readme_exist_with_their_options():
    commands = get_command(app).commands
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^    (rasp .+?)(?:  +#.*)?$", text, re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        _, verb, *words = shlex.split(line)
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_readme_shows_the_first_example():
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = (ROOT / "examples" / "quickstart.py").read_text().split('"""')[2].strip()

    assert block.strip() == code
    assert len(block.strip().splitlines()) <= 10


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example))

    assert "%" in capsys.readouterr().out
