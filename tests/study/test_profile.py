"""The profile: it counts every operation and product, adds up to the step, and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import backend, ops, tensor
from minillm.autograd import Op
from minillm.cli import main
from minillm.models.gpt2 import GPT2Config
from minillm.study.profile import Profile, profile_training, profiled

CONFIG = GPT2Config(vocab_size=11, context=8, layers=3, heads=2, channels=16)


def test_every_operation_is_counted():
    profile = profile_training(CONFIG, batch_size=2, repeats=2)
    rows = {name: calls for name, calls, _, _ in profile.rows()}
    assert rows["attention"] == 3
    assert rows["linear"] == 4 * 3 + 1
    assert rows["embedding"] == 2
    assert rows["cross_entropy"] == 1
    assert len(profile.steps) == 2
    times = sum(forward + backward for _, _, forward, backward in profile.rows())
    assert times + profile.elsewhere == pytest.approx(profile.seconds)
    assert 0 < profile.elsewhere < profile.seconds
    assert all(forward > 0 and backward > 0 for _, _, forward, backward in profile.rows())


def test_the_operations_of_the_products_are_those_on_paper():
    """Six for each weight and token, and attention's; the token table counts once, as the output layer."""
    tokens, channels = 2 * 8, 16
    weights = 3 * 12 * channels**2 + 11 * channels
    attention = 3 * 2 * 2 * (2 + 5) * 2 * 8 * 8 * 8  # layers, items, heads; products forward and backward; T T D
    profile = profile_training(CONFIG, batch_size=2, repeats=1)
    assert profile.flops == 6 * weights * tokens + attention
    assert profile.products_alone(repeats=1) > 0


def test_nothing_is_left_behind_even_by_an_error():
    before = Op._run, backend.matmuls
    profile = Profile()

    def fails():
        with profiled(profile):
            ops.matmul(tensor(np.ones((2, 3))), tensor(np.ones((3, 2))))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (Op._run, backend.matmuls) == before
    assert profile.calls == {"matmul": 1}


def test_the_command(capsys):
    main(["profile", "--preset", "nano", "--repeats", "1", "--batch-size", "2"])
    printed = capsys.readouterr().out
    assert "attention" in printed
    assert "GFLOP of products alone" in printed
    with pytest.raises(SystemExit):
        main(["profile", "--preset", "nano", "--device", "cuda"])


@pytest.mark.parametrize("name", ["llama-nano", "bert-nano", "xlnet-nano", "bart-nano", "RUN"])
def test_any_model_that_has_a_name(name, capsys, tmp_path):
    """A preset of any family, or a run; its shape can be changed."""
    if name == "RUN":
        (tmp_path / "text.txt").write_text("the model reads a text; " * 200)
        where = (
            f"--data {tmp_path}/text.txt --out {tmp_path}/run --steps 1 --warmup 0 --sample-every 0 --eval-batches 1"
        )
        main(["train", "--preset", "nano", *where.split()])
        capsys.readouterr()
        name = str(tmp_path / "run")
    main(["profile", name, "--repeats", "1", "--batch-size", "2"])
    printed = capsys.readouterr().out
    assert ("softmax" if name == "xlnet-nano" else "attention") in printed
    assert "GFLOP of products alone" in printed


def test_a_model_and_a_preset_are_one_too_many(capsys):
    with pytest.raises(SystemExit):
        main(["profile", "llama-nano", "--preset", "nano"])
    assert "profile: llama-nano and --preset nano are two models; leave one of them out" in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["profile", "lama-nano"])
    assert "profile: lama-nano is no preset, and no folder or file of this name is there" in capsys.readouterr().err
