"""Every chapter of the guide is true: its code and its commands run, in order, and print what it says."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.errors import InputError
from minillm.exercises import ORDER
from minillm.guide import chapter, chapters
from tests.documents import (
    ANOTHER_TEST,
    ROOT,
    UNTESTED,
    blocks_of,
    check_command,
    commands_of,
    compare_output,
    run_command,
    run_python,
)

CHAPTERS = {one.name: one for one in chapters()}
LONGEST = 170  # lines: a chapter is read in one sitting


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # ranks are processes of their own
    document, names, printed = CHAPTERS[name].path.name, {"__name__": "guide"}, ""
    for block in blocks_of(CHAPTERS[name].text):
        if block.language == "python":
            run_python(block, names, capsys, document)
        elif block.language == "sh":
            for command in commands_of(block):
                check_command(command, document)
                if command.untested is None:
                    printed = run_command(command, tmp_path, capsys)
        elif block.language == "text":
            compare_output(block, printed, document)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_parts(name):
    text = CHAPTERS[name].text
    assert len(text.splitlines()) <= LONGEST
    assert re.match(rf"# {CHAPTERS[name].number}\. ", text)
    assert "**You will be able to**" in text.split("\n\n")[1], "the second paragraph says what the reader learns"
    assert "minillm exercise start " in text
    assert re.search(r"results/\w+\.(png|md)|\w+\.(html|svg)", text), "it has a picture or a page to look at"
    assert re.search(r"\]\(\.\./", text), "it names a file to read"
    assert {block.language for block in blocks_of(text)} >= {"python", "sh"}
    for block in blocks_of(text):
        assert block.language in ("python", "sh", "text"), (name, block.line)
        assert all(len(line) <= 120 for line in block.text.splitlines()), (name, block.line)


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_of_a_chapter_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)#]+)\)", CHAPTERS[name].text):
        assert "://" in link or (CHAPTERS[name].path.parent / link).exists(), link


# Words of the trade that the guide explains; each is printed bold where that is.
WORDS = (
    *("central difference", "node", "cotangent", "logits", "nat", "tokens", "bits per byte", "heads", "embedding"),
    *("RoPE", "residual stream", "GELU", "moments", "activations", "dropout", "KV cache", "rank", "warp", "ZeRO"),
)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_explained_where_it_first_comes(word):
    for one in chapters():
        prose = one.text.partition("\n## ")[2]  # behind the title and what the reader will be able to do
        prose = re.sub(r"^```.*?^```$", "", prose, flags=re.DOTALL | re.MULTILINE)
        prose = re.sub(r"^    .*$|^#.*$|\]\([^)]*\)|`[^`\n]*`", "", prose, flags=re.MULTILINE)
        found = re.search(rf"(\*\*)?\b{re.escape(word)}\b", prose, re.IGNORECASE if word.islower() else 0)
        if found:
            assert found[1], (one.path.name, prose[max(0, found.start() - 60) : found.end() + 40])
            return
    pytest.fail(f"no chapter has {word}")


def test_the_lines_that_the_guide_numbers_are_those_that_it_means():
    [number] = re.findall(r"`until (\d+)`", chapter("seeing").text)
    lines = (ROOT / "minillm/backward.py").read_text(encoding="utf-8").splitlines()
    assert lines[int(number) - 1].endswith("# the line that calls every backward")
    [number] = re.findall(r"break softmax\.cu:(\d+) if", chapter("kernels").text)
    lines = (ROOT / "kernels/softmax.cu").read_text(encoding="utf-8").splitlines()
    assert lines[int(number) - 1].strip().endswith(";"), "a breakpoint needs a statement"


def test_the_chapters_are_twelve_and_count():
    assert [one.number for one in chapters()] == list(range(1, 13))


def test_an_installed_copy_has_the_chapters():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "minillm.guide" in settings["packages"]
    assert "*.md" in settings["package-data"]["minillm.guide"]


def test_every_exercise_belongs_to_a_chapter():
    named = re.findall(r"minillm exercise start (\S+)", "".join(one.text for one in chapters()))
    assert sorted(named) == sorted(ORDER)


def test_most_commands_run():
    """A mark that leaves a command out is for what a machine lacks."""
    blocks = [block for one in chapters() for block in blocks_of(one.text) if block.language == "sh"]
    commands = [command for block in blocks for command in commands_of(block)]
    run = [one for one in commands if one.untested is None]
    assert len(run) > 2 * (len(commands) - len(run)), [shlex.join(one.words) for one in commands if one.untested]
    for one in commands:
        for file in ANOTHER_TEST.findall(one.untested or ""):
            assert (ROOT / file).is_file()


def test_no_run_of_a_chapter_is_in_the_way_of_another():
    """A student works through all of them in one folder, and `minillm train` overwrites no run."""
    made = [
        command.words[command.words.index("--out") + 1]
        for one in chapters()
        for block in blocks_of(one.text)
        if block.language == "sh"
        for command in commands_of(block)
        if command.words[:2] in (["minillm", "train"], ["minillm", "finetune"]) and "--out" in command.words
    ]
    assert len(made) > 10
    assert len(set(made)) == len(made)


def test_a_wrong_comment_or_output_is_found(tmp_path, capsys):
    """The machinery itself: a false `# prints`, a missing line of output, a command that fails."""
    good, bad, shown = blocks_of(
        "```python\nprint(1 + 1)  # prints 2\n```\n\n```python\nprint(1)\n```\n```text\nb ... d\ne\n```\n"
    )
    run_python(good, {}, capsys, "x.md")
    with pytest.raises(AssertionError, match=r"x\.md, line 6"):
        run_python(bad, {}, capsys, "x.md")
    compare_output(shown, "a\nb c d\nno\ne\n", "x.md")
    for printed in ("b c d\n", "e\nb c d\n"):
        with pytest.raises(AssertionError, match="is not printed"):
            compare_output(shown, printed, "x.md")
    text = "```sh\nminillm sample nothing --prompt x  # tested with --seed 3\npip x  # not tested: a whim\n```\n"
    wrong, unmarked = commands_of(blocks_of(text)[0])
    assert wrong.words[-2:] == ["--seed", "3"]
    with pytest.raises(AssertionError, match="nothing"):
        run_command(wrong, tmp_path, capsys)
    with pytest.raises(AssertionError):
        check_command(unmarked, "x.md")
    assert "a whim" not in UNTESTED


def test_the_command_lists_and_shows_chapters(capsys, monkeypatch):
    main(["guide"])
    listed = capsys.readouterr().out
    for one in chapters():
        assert f"{one.number:3}  {one.name} " in listed
        assert one.title.split(". ", 1)[1] in listed
    for mark in ("one file or notebook", "`prints`", "`tested with`"):
        assert mark in listed
    main(["guide", "5"])
    assert capsys.readouterr().out == chapter("5").text == CHAPTERS[chapter("5").name].text
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    main(["guide", chapter("5").name])
    laid_out = capsys.readouterr().out
    assert "```" not in laid_out
    assert "\x1b[" in laid_out
    assert Path(chapter("5").path.parent, "../ops/attention.py").resolve().as_uri() in laid_out


def test_an_unknown_chapter_is_answered(capsys):
    with pytest.raises(InputError, match="there is no chapter '13'"):
        chapter("13")
    with pytest.raises(SystemExit):
        main(["guide", "atention"])
    assert "did you mean 'attention'?" in capsys.readouterr().err
