"""What the README says is so: its example runs, its table names every op and real files, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minillm import ops
from minillm.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_prints_what_it_says(example, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert len(example.splitlines()) <= 25
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"# prints (.*)$", example, re.MULTILINE)


def test_the_first_example_prints():
    assert "# prints" in EXAMPLES[0]


def test_the_table_names_every_op_and_files_that_exist():
    rows = re.findall(r"^\| `([^|]*)` \| \[(\S+)\]\((\S+)\) \| [^|]* \| \[(\S+)\]\((\S+)\) \|$", README, re.MULTILINE)
    named = {name.strip("` ") for row in rows for name in row[0].split("`, `")}
    known = {op.name for op in ops.OPS}
    missing, unknown = sorted(known - named), sorted(named - known)
    assert not missing, f"add to the table of operations in README.md (name, file, kernel, test): {', '.join(missing)}"
    assert not unknown, f"take out of the table of operations in README.md: {', '.join(unknown)}"
    for _, file, link, test, test_link in rows:
        assert (ROOT / link).is_file()
        assert (ROOT / test_link).is_file()
        assert link.endswith(file)
        assert test_link.endswith(test)


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"minillm ((?:(?:tokenizer|finetune|exercise) )?[a-z]+) ?", README)))
)
def test_every_command_exists(command):
    if command.split()[0] in {name.split()[0] for name in COMMANDS}:
        assert command in COMMANDS


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


FOLDERS = ("minillm", "kernels", "tests", "benchmarks")


def named_in(folder: str) -> set[str]:
    """The files and folders that a folder's README.md links to, of those that lie in it."""
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    paths = [(ROOT / folder / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", text)]
    for path in paths:
        assert path.exists(), f"{folder}/README.md names {path.relative_to(ROOT)}, which is not there"
    return {path.relative_to(ROOT / folder).parts[0] for path in paths if (ROOT / folder) in path.parents}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_readme_names_all_its_files(folder):
    hidden = ("__pycache__", "README.md", "py.typed")
    there = {path.name for path in (ROOT / folder).iterdir() if path.name not in hidden and path.name[0] != "."}
    missing = there - named_in(folder)
    assert not missing, f"{folder}/README.md has no line for {', '.join(sorted(missing))}; say there what each is"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_readme_is_a_page(folder):
    assert len((ROOT / folder / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


def test_files_that_a_recipe_names_exist():
    text = (ROOT / "minillm" / "README.md").read_text(encoding="utf-8") + (ROOT / "kernels" / "README.md").read_text()
    places = [ROOT, ROOT / "minillm", ROOT / "kernels"]
    for name in set(re.findall(r"`([\w/]+\.(?:py|md|cu|cuh))`", text)):
        if "mish" not in name and "name.py" not in name:
            assert any((place / name).is_file() for place in places), name
