"""The whole library in one file, in under two seconds: run this first."""

from __future__ import annotations

import numpy as np

import minillm
from minillm import ops
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.data import Batches, split_tokens
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW, decay_groups
from minillm.testing import check_gradients
from minillm.tokenizers import BPETokenizer

TEXT = "the cat sat on the mat. the dog sat on the log. the cat saw the dog, and the dog saw the cat.\n" * 40


def test_a_gradient():
    x = minillm.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [[2, -4, 6]])


def test_a_gradient_check(rng):
    check_gradients(ops.layer_norm, rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=5))


def test_text_to_text(tmp_path):
    """Text, tokens, batches, training, checkpoint, and text again."""
    tokenizer = BPETokenizer.train(TEXT, vocab_size=280)
    ids = np.array(tokenizer.encode(TEXT))
    assert tokenizer.decode(ids) == TEXT
    train, validation = split_tokens(ids)

    minillm.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.vocab_size, context=16, layers=2, heads=2, channels=32))
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=5e-3)
    batches = Batches(train, batch_size=8, context=16, seed=0)
    losses = []
    for step in range(90):
        optimizer.zero_grad()
        loss = model.loss(*batches.batch(step))
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - np.log(tokenizer.vocab_size)) < 0.3  # it knows nothing
    with minillm.no_grad():
        validated = model.loss(*next(Batches(validation, 4, 16, seed=0).evaluation_batches(1))).item()
    assert validated < 0.7  # it knows the text

    save_checkpoint(tmp_path / "cat.safetensors", model, optimizer, {"step": 90})
    copy = GPT2(model.config)
    copy.load_state_dict(load_checkpoint(tmp_path / "cat.safetensors").model)
    prompt = tokenizer.encode("the cat sat on the")
    text = tokenizer.decode(list(generate(copy, prompt, 8, temperature=0)))
    assert text.startswith((" mat", " log"))
