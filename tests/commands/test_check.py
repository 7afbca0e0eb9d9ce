"""`minillm check`: the table, JSON, exit status, and what is refused."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest

from minillm.cli import main
from minillm.commands.check import print_table
from minillm.nn import KVCache
from minillm.ops.layernorm import LAYERNORM
from minillm.study.ledger import CLAIMS, Verdict
from tests.study.ledger.test_faults import pairs


@pytest.fixture
def text(tmp_path):
    (tmp_path / "my text.txt").write_text("the model reads a text, and then it writes what it has read; " * 60)
    return tmp_path / "my text.txt"


def test_the_table_names_what_repeats_it(text, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    main(["check", "--preset", "nano", "--data", str(text), "--only", "kv-cache"])
    shown = capsys.readouterr().out
    assert CLAIMS["kv-cache"].sentence in shown
    assert "1 holds" in shown
    [command] = re.findall(r"minillm (check .* --only \S+)", " ".join(re.sub(r"[│┃]", " ", shown).split()))
    main(shlex.split(command))  # the path has a space
    assert "1 holds" in capsys.readouterr().out


def test_a_claim_that_fails_is_exit_status_1(text, capsys, monkeypatch):
    right = KVCache.extend
    monkeypatch.setattr(KVCache, "extend", lambda cache, k, v: right(cache, k * 1.001, v))
    with pytest.raises(SystemExit) as ended:
        main(["check", "--data", str(text), "--only", "kv-cache"])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "1 fails" in shown
    assert "kv-cache fails: logits" in shown


def test_a_claim_that_fails_names_the_command_that_shows_where(text, capsys, monkeypatch):
    pairs(LAYERNORM, "fast", factor=1.01)(monkeypatch)
    with pytest.raises(SystemExit):
        main(["check", "nano", "--data", str(text), "--only", "fast"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "`minillm gradcheck` checks the backward of each operation alone" in shown
    [command] = re.findall(r"`minillm (step [^`]*)` names the first that differs in a step", shown)
    main(shlex.split(command))
    assert re.search(r"the first that differs is stop \d+, layernorm backward in ln_f", capsys.readouterr().out)


def test_a_claim_that_does_not_apply_says_why(text, capsys):
    main(["check", "distilbert-nano", "--data", str(text), "--only", "packed"])
    shown = capsys.readouterr().out
    assert "packed does not apply: this DistilBertForMaskedLM takes no texts that share a row" in shown
    assert "1 does not apply" in shown


def test_verdicts_are_counted_in_words(capsys):
    def verdict(word):
        return Verdict("one", "a sentence", None, None, word, "the reason", 0.1, "minillm check")

    print_table([verdict("holds"), verdict("holds"), verdict("fails"), verdict("does not apply")])
    assert capsys.readouterr().out.splitlines()[-1] == "2 hold, 1 fails, 1 does not apply"
    print_table([verdict("holds"), verdict("does not apply"), verdict("does not apply")])
    assert capsys.readouterr().out.splitlines()[-1] == "1 holds, 2 do not apply"


def test_a_preset_is_a_model_too(text, capsys):
    main(["check", "nano", "--data", str(text), "--only", "fast", "--json"])
    [verdict] = json.loads(capsys.readouterr().out)
    assert verdict["command"] == f"minillm check --preset nano --data '{text}' --only fast"


def test_json(text, capsys):
    main(["check", "--data", str(text), "--only", "fast", "--json"])
    [verdict] = json.loads(capsys.readouterr().out)
    assert verdict["claim"] == "fast"
    assert verdict["verdict"] == "holds"
    assert 0 <= verdict["difference"] <= verdict["bound"] < 1e-9
    assert np.isfinite(verdict["seconds"])
    assert verdict["command"] == f"minillm check --preset nano --data '{text}' --only fast"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "cache"], "check: there is no claim 'cache'"),
        (["--preset", "nanno"], "check: nanno is no preset; did you mean 'nano'?"),
        (["gpt2-nano", "--preset", "llama-nano"], "check: gpt2-nano and --preset llama-nano are two models; leave one"),
        (["no-such-folder"], "no-such-folder is no preset"),
        (["--data", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_refusals_are_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
