"""What is shipped: every file of the package that is no Python is under version control."""

import subprocess
from pathlib import Path

import pytest

import rasp

PACKAGE = Path(rasp.__file__).parent


def test_no_file_of_the_package_is_ignored_by_git():
    files = [
        str(path)
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    ]
    done = subprocess.run(
        ["git", "-C", str(PACKAGE), "check-ignore", *files],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")

    assert done.stdout.splitlines() == []
