"""What the READMEs say is so: examples run, the table of operations has every op, commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minillm import ops
from minillm.cli import COMMANDS, GROUPS
from minillm.guide import chapters
from tests.documents import blocks_of, check_options, commands_of, run_python

ROOT = Path(__file__).parents[1]
FOLDERS = ("minillm", "kernels", "tests", "benchmarks")
READMES = [ROOT / "README.md", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md")))]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for path in READMES}
BLOCKS = {name: blocks_of(path.read_text(encoding="utf-8")) for name, path in DOCUMENTS.items()}
EXAMPLES = [(name, block) for name, blocks in BLOCKS.items() for block in blocks if block.language == "python"]
README = DOCUMENTS["README.md"].read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[f"{name}:{block.line}" for name, block in EXAMPLES])
def test_an_example_runs_and_prints_what_it_says(name, example, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert len(example.text.splitlines()) <= 25
    run_python(example, {"__name__": "readme"}, capsys, name)


def test_the_readme_is_short_and_begins_with_an_example_that_prints():
    assert len(README.splitlines()) <= 150
    assert "# prints" in next(block for name, block in EXAMPLES if name == "README.md").text


def test_the_table_names_every_op_and_files_that_exist():
    folder = DOCUMENTS["minillm/ops/README.md"].parent
    text = DOCUMENTS["minillm/ops/README.md"].read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^|]*)` \| \[(\S+)\]\((\S+)\) \| [^|]* \| \[(\S+)\]\((\S+)\) \|$", text, re.MULTILINE)
    named = {name.strip("` ") for row in rows for name in row[0].split("`, `")}
    known = {op.name for op in ops.OPS}
    missing, unknown = sorted(known - named), sorted(named - known)
    assert not missing, f"add to the table of minillm/ops/README.md (name, file, kernel, test): {', '.join(missing)}"
    assert not unknown, f"take out of the table of minillm/ops/README.md: {', '.join(unknown)}"
    for _, file, link, test, test_link in rows:
        assert (folder / link).is_file()
        assert (folder / test_link).is_file()
        assert link.endswith(file)
        assert test_link.endswith(test)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_exists_and_has_the_options(name, capsys):
    text = DOCUMENTS[name].read_text(encoding="utf-8")
    for command in set(re.findall(rf"minillm ((?:(?:{'|'.join(GROUPS)}) )?[a-z]+) ?", text)):
        if command.split()[0] in {one.split()[0] for one in COMMANDS}:
            assert command in COMMANDS
    lines = [one for block in BLOCKS[name] if block.language == "sh" for one in commands_of(block)]
    for command in [one.words for one in lines if one.words[0] == "minillm" and len(one.words) > 1]:
        check_options(command, capsys)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", DOCUMENTS[name].read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (DOCUMENTS[name].parent / link).exists(), link


def test_the_readme_names_every_chapter():
    for one in chapters():
        assert f"({one.path.relative_to(ROOT)})" in README, one.path


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
