"""Docstrings: every public name has one, and the examples in them hold."""

from __future__ import annotations

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import rasp

SOURCE = Path(rasp.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.read_text())


def name_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def undocumented(node, prefix):
    """Names of public definitions below ``node`` that have no docstring."""
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef)) or child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        if ast.get_docstring(child) is None:
            yield name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, name)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())

    assert ast.get_docstring(tree)
    assert list(undocumented(tree, name_of(path))) == []


@pytest.mark.parametrize("path", [path for path in FILES if ">>>" in path.read_text()], ids=name_of)
def test_examples_in_docstrings_hold(path):
    result = doctest.testmod(import_module(name_of(path)))

    assert result.attempted > 0
    assert result.failed == 0
