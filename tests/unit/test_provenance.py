from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from rasp.provenance import collect


def test_what_is_collected_is_json_and_names_the_moment():
    found = collect({"seed": 3})
    assert json.loads(json.dumps(found)) == found
    assert found["arguments"] == {"seed": 3}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert datetime.now(UTC) - datetime.fromisoformat(found["time"]) < timedelta(seconds=5)


def test_torch_is_named_only_where_it_was_imported():
    code = "import sys; from rasp.provenance import collect; sys.exit('torch' in collect({}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    import torch

    assert collect({})["torch"] == torch.__version__


def test_the_revision_is_the_working_directorys_and_marked_if_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert collect({})["git"] is None

    def git(*command: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", *identity, *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "a").write_text("1")
    git("init")
    git("add", "a")
    git("commit", "-m", "first")
    assert collect({})["git"] == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert collect({})["git"] == git("rev-parse", "HEAD") + "+"


def test_without_git_there_is_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert collect({})["git"] is None
