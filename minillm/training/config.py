"""The settings of a training run: one frozen dataclass, named presets, and JSON in and out."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from minillm.device import is_device
from minillm.errors import CheckpointError, InputError, did_you_mean
from minillm.lora import LoraConfig
from minillm.models.bart_config import BartConfig, both_sides
from minillm.models.config import Config, check_types
from minillm.models.gpt2 import GPT2Config
from minillm.training.tasks import task_class

FORMAT = 2  # of the runs that begin now; see TrainConfig.format


class Derived:
    """A number that was not given: it follows from other settings, and changes when these are replaced."""


class DerivedFloat(Derived, float):
    """A derived floating-point number."""


class DerivedInt(Derived, int):
    """A derived whole number."""


# The class of configurations in each file of minillm/models.
CONFIGS = {
    "gpt2": "GPT2Config",
    "llama": "LlamaConfig",
    "gemma": "GemmaConfig",
    "bert": "BertConfig",
    "roberta": "RobertaConfig",
    "distilbert": "DistilBertConfig",
    "xlnet": "XLNetConfig",
    "bart": "BartConfig",
}


# What each family learns where no objective is given, and the shape that it has where no preset is.
OBJECTIVES = {
    "gpt2": "causal",
    "llama": "causal",
    "gemma": "causal",
    "bert": "masked",
    "roberta": "masked",
    "distilbert": "masked",
    "xlnet": "permutation",
    "bart": "denoising",
}
TOKENIZERS = {"bert": "wordpiece", "distilbert": "wordpiece", "xlnet": "unigram"}  # of the others: bpe
_ENCODER: dict[str, Any] = dict(vocab_size=1024, layers=4, heads=4, channels=128, hidden=512, dropout=0.1)
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": dict(vocab_size=1024, context=128, layers=4, heads=4, channels=128, dropout=0.1),
    "llama": dict(vocab_size=1024, context=128, layers=4, heads=4, kv_heads=4, channels=128, hidden=344, tied=True),
    "gemma": dict(vocab_size=1024, context=128, layers=4, heads=4, kv_heads=4, channels=128, hidden=344),
    "bert": dict(context=128, **_ENCODER),
    "roberta": dict(context=128, **_ENCODER),
    "distilbert": dict(context=128, **_ENCODER),
    "xlnet": _ENCODER,
    "bart": dict(vocab_size=1024, context=128, channels=128, **both_sides(3, 4, 512), init_std=128**-0.5),
}


def config_class(architecture: str) -> type[Config]:
    """The class of a family's configurations.

    Raises: InputError for an unknown name, with the nearest known one.
    """
    if architecture not in CONFIGS:
        raise InputError(f"train: there is no model {architecture!r}{did_you_mean(architecture, CONFIGS)}")
    return getattr(importlib.import_module(f"minillm.models.{architecture}"), CONFIGS[architecture])


WATCH_EVERY = 20  # steps, where --watch has no number
MOST_THREADS = 256  # a process starts each of them


HEADINGS = {
    "model": "architecture model init lora",
    "data": "data field tokenizer validation_fraction objective task",
    "optimiser": "batch_size micro_batches optimizer lr min_lr beta1 beta2 weight_decay clip nonfinite",
    "schedule": "steps warmup schedule decay_steps patience eval_every eval_batches",
    "run": "preset out resume seed threads device dtype recompute watch",
    "ranks": "nproc dp tp pp zero pipeline timeout trace",
    "display": "progress sample_every sample_tokens",
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; each can be set on the command line.

    model: the configuration of the family in `architecture`; task: the Options of the task in `objective`.
    """

    headings: ClassVar[dict[str, str]] = HEADINGS

    preset: str = "default"
    """Start from a preset; other options override it. Minutes on a CPU: default, shakespeare-char-cpu, multi30k, and a
    minute each: nano or gpt2-nano, llama-nano, gemma-nano, bert-nano, roberta-nano, distilbert-nano, xlnet-nano,
    bart-nano. Sizes that are known: gpt2, gpt2-medium, smollm2-135m, bert-base-uncased, roberta-base, bart-base, and
    all others of minillm/models."""
    data: str = "builtin"
    """Text to train on: a file, a folder, a glob pattern, a .jsonl, or `builtin` (the help texts of Python itself)."""
    field: str | None = None
    """Which field of a .jsonl line holds the text; `text` by default."""
    out: Path | None = None
    """Run directory, which must not exist yet; by default the first free of runs/PRESET-1, -2, ..."""
    tokenizer: str = "bpe"
    """`bpe`, `wordpiece` or `unigram`, trained on the training part; `char`, the characters of both parts; or a folder
    with a saved tokenizer."""
    validation_fraction: float = 0.1
    """Share of the text, at its end, that is never trained on."""
    architecture: str = dataclasses.field(default="gpt2", metadata={"name": "model"})
    """Family of the model: gpt2, llama, bert, roberta, xlnet or bart; each has options of its own for its shape."""
    objective: str = "causal"
    """What the model learns: causal (the next token); masked (hidden tokens); permutation (tokens in any order);
    denoising (the text from a corrupted one); pairs (a target for each source, such as a translation)."""
    task: Any = None
    """Settings of the objective; by default its own."""
    init: str | None = None
    """Model to start from, with its tokenizer, instead of random weights."""
    model: Any = dataclasses.field(
        default_factory=lambda: GPT2Config(1024, context=128, layers=4, heads=4, channels=128, dropout=0.1)
    )
    """Shape of the model; vocab_size sets the size of a BPE trained here; a char or loaded tokenizer sets it itself."""
    lora: LoraConfig | None = None
    """Adapters to train in place of the model's own weights; without, all weights are trained."""
    steps: int = 2000
    """Number of optimiser steps."""
    batch_size: int = 12
    """Sequences per step, each of `context` tokens."""
    micro_batches: int = 1
    """Number of parts in which a batch is computed, one after another: equal gradient, less memory."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = DerivedFloat()
    """Learning rate at the last step, not above lr; a tenth of lr unless it is given."""
    warmup: int = DerivedInt()
    """Steps of linear warmup, from lr/warmup to lr, fewer than steps; a tenth of steps, at most 100, unless given."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """How the rate falls: half a cosine; or wsd (warmup, stable, decay): constant, then linear over decay_steps."""
    decay_steps: int = DerivedInt()
    """Steps of decay at the end of wsd, after the warmup; a tenth of steps unless given. With 0, lr stays."""
    beta1: float = 0.9
    """Decay rate of AdamW's mean of gradients."""
    beta2: float = 0.99
    """Decay rate of AdamW's mean of squared gradients."""
    weight_decay: float = 0.1
    """Decay of matrices by AdamW or SGD; biases and normalisation weights are not decayed."""
    clip: float = 1.0
    """Largest global norm of the gradient; a larger gradient is scaled down to it."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """After a step whose loss or gradient is NaN or infinite: stop, or skip it and go on; ten in a row stop the run."""
    eval_every: int = 200
    """Steps between validations, each of which also saves."""
    eval_batches: int = 20
    """Validation batches, the same at every validation."""
    sample_every: int = 500
    """Steps between samples of generated text; 0 for none."""
    patience: int | None = None
    """Stop after so many validations without a lower loss; by default all steps are taken."""
    sample_tokens: int = 60
    """Length of such a sample, in tokens."""
    threads: int | None = None
    """Threads of this process on the CPU; by default the fastest of some ways to use all cores, tried before step 1."""
    device: str = "cpu"
    """Device to train on: `cpu`, `cuda` (the current GPU), or `cuda:1`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of weights and activations; bfloat16 needs a GPU, and the optimiser then keeps float32 weights as well."""
    dp: int | None = None
    """Data parallel: number of ranks that each compute a part of the batch; default: all that --tp and --pp leave."""
    tp: int = 1
    """Tensor parallel: number of ranks that each have a part of every large matrix."""
    pp: int = 1
    """Pipeline parallel: number of ranks that each have some of the layers; give more --micro-batches than ranks."""
    zero: int = 0
    """ZeRO stage. 0: off; 1: shard optimiser moments; 2: also gradients; 3: also weights."""
    pipeline: Literal["1f1b", "gpipe"] = "1f1b"
    """Pipeline schedule: backwards as soon as possible (1f1b), or after all forwards (gpipe)."""
    recompute: str = "none"
    """Layers whose activations are computed again in the backward, to save memory: none, all, or such as `0,2-5`."""
    seed: int = 1337
    """Seed of the weights, the order of the data, and dropout."""
    watch: int | None = dataclasses.field(default=None, metadata={"alone": WATCH_EVERY})
    """Steps between looks into every layer, for watch.jsonl and watch.png; 20 without a number. By default none."""
    format: int = dataclasses.field(default=FORMAT, metadata={"option": False})
    """Format of the run: runs of format 1 began with another schedule and order of data, and keep them (history.py)."""

    def __post_init__(self):
        self._derive()
        self._check_kinds()
        whole = dict(steps=1, batch_size=1, micro_batches=1, warmup=0, decay_steps=0, eval_every=1, eval_batches=1)
        if self.threads is not None and self.threads > MOST_THREADS:
            raise InputError(f"train: threads is {self.threads}; give at most {MOST_THREADS}, best the number of cores")
        parallel = dict(threads=1, dp=1, tp=1, pp=1, patience=1, watch=1)
        for name, least in {**whole, **parallel, "sample_every": 0, "sample_tokens": 0, "seed": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise InputError(f"train: {name} is {getattr(self, name)}; give {least} or more")
        if self.zero not in (0, 1, 2, 3):
            raise InputError(
                f"train: zero is {self.zero}; choose 0 (off), 1 (shard moments), 2 (also gradients) or 3 (also weights)"
            )
        for name in ("lr", "min_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"train: {name} is {getattr(self, name)}; give 0 or more, but a finite number")
        if self.format not in (1, FORMAT):
            raise InputError(
                f"train: the run has format {self.format}; this version knows 1 to {FORMAT}; install a later version"
            )
        if self.format > 1:
            self._check_schedule()
        if not self.clip > 0:
            raise InputError(
                f"train: clip is {self.clip}; give a norm above 0 (a large one, such as 1e9, to never clip)"
            )
        if self.lora is not None and self.tp * self.pp > 1:
            raise InputError(
                f"train: --lora {self.lora.rank} trains adapters of whole layers, which --tp {self.tp} --pp {self.pp} "
                "would divide; leave these out (--dp and --zero work)"
            )
        if not is_device(self.device):
            raise InputError(f"train: device is {self.device!r}; choose cpu, cuda or cuda:0")
        if self.dtype == "bfloat16" and self.device == "cpu":
            raise InputError("train: bfloat16 needs --device cuda, because a CPU cannot compute in it; use float32")
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                f"train: validation_fraction is {self.validation_fraction}; give a share above 0 and below 1"
            )
        if self.micro_batches > self.batch_size:
            raise InputError(
                f"train: micro_batches={self.micro_batches} parts of a batch of {self.batch_size} sequences would be "
                f"empty; give {self.batch_size} or fewer"
            )

    def _derive(self) -> None:
        """Fill in the numbers that were not given, each from the settings before it."""
        rules: dict[str, Callable[[], Derived]] = {
            "min_lr": lambda: DerivedFloat(self.lr / 10),
            "warmup": lambda: DerivedInt(min(100, self.steps // 10)),
            "decay_steps": lambda: DerivedInt(max(0, min(self.steps // 10, self.steps - max(1, self.warmup)))),
        }
        for name, rule in rules.items():
            if isinstance(getattr(self, name), Derived):
                object.__setattr__(self, name, rule())

    def with_model(self, architecture: str, objective: str | None = None) -> TrainConfig:
        """These settings for another family or another objective, each with the settings of its own that go with it."""
        kind = config_class(architecture)
        objective = objective or (self.objective if architecture == self.architecture else OBJECTIVES[architecture])
        model = self.model if architecture == self.architecture else kind(**SHAPES[architecture])
        task = self.task if objective == self.objective else None
        tokenizer = self.tokenizer if architecture == self.architecture else TOKENIZERS.get(architecture, "bpe")
        return dataclasses.replace(
            self, architecture=architecture, model=model, objective=objective, task=task, tokenizer=tokenizer
        )

    def _check_kinds(self) -> None:
        """Raise InputError unless the model and the settings of the objective are those of their names."""
        kind = task_class(self.objective)
        kind.check_model(self.architecture)
        if self.task is None:
            object.__setattr__(self, "task", kind.Options())
        nested = {"model": (self.architecture, config_class(self.architecture)), "task": (self.objective, kind.Options)}
        for name, (whose, wanted) in nested.items():
            if not isinstance(getattr(self, name), wanted):
                raise InputError(
                    f"train: {name} is a {type(getattr(self, name)).__name__}; for {whose} give a {wanted.__name__}"
                )

    def _check_schedule(self) -> None:
        """Raise InputError for learning rates that would not do what their options promise."""
        if self.min_lr > self.lr:
            raise InputError(
                f"train: min_lr={self.min_lr} is above lr={self.lr}, so the rate would rise; give --min-lr of "
                f"{self.lr} at most, or leave it out for a tenth of --lr"
            )
        if self.warmup >= self.steps:
            raise InputError(
                f"train: warmup={self.warmup} leaves none of steps={self.steps} for the rate to reach min_lr; give a "
                "smaller --warmup, or more --steps"
            )
        most = self.steps - max(1, self.warmup)  # a step before the decay has lr
        if self.schedule == "wsd" and self.decay_steps > most:
            raise InputError(
                f"train: warmup={self.warmup} and decay_steps={self.decay_steps} do not fit into steps={self.steps}; "
                f"give --decay-steps of {most} at most, a smaller --warmup, or more --steps"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        content = dataclasses.asdict(self)
        content["out"] = None if self.out is None else str(self.out)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainConfig:
        """The inverse of to_json; unknown fields are an error that suggests the nearest."""
        try:
            kinds = {
                "model": config_class(content.get("architecture", "gpt2")),
                "task": task_class(content.get("objective", "causal")).Options,
            }
            config = _from_object(cls, content, kinds)
            check_types("train", dataclasses.replace(config, clip=min(config.clip, 1e300)))  # which may be infinite
            return config
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config: the settings cannot be used: {error}") from None


def _from_object(kind: type, content: dict[str, Any], kinds: dict[str, type]) -> Any:
    """A dataclass from a JSON object; `kinds` are the dataclasses of fields whose annotation leaves it open."""
    hints, fields = get_type_hints(kind), {}
    known = [*(field.name for field in dataclasses.fields(kind)), *getattr(kind, "former", ())]
    for name, value in content.items():
        if name not in known:
            raise CheckpointError(f"config: there is no setting called {name!r}{did_you_mean(name, known)}")
        hint = hints.get(name)
        possible = [kinds[name]] if name in kinds else [hint, *get_args(hint)]
        inner = next((one for one in possible if dataclasses.is_dataclass(one)), None)
        if isinstance(value, dict) and inner is not None:
            value = _from_object(inner, value, {})  # type: ignore[arg-type]
        elif isinstance(value, list):
            named = next((one for one in possible if hasattr(one, "_fields")), None)  # such as RopeScaling
            value = tuple(tuple(one) if isinstance(one, list) else one for one in value)
            value = value if named is None else named(*value)  # type: ignore[misc]
        elif value is not None and Path in possible:
            value = Path(value)
        fields[name] = value
    return kind(**fields)


PRESETS = {
    "default": TrainConfig(),
    # nanoGPT's example for a CPU, config/train_shakespeare_char.py with the settings of its README
    "shakespeare-char-cpu": TrainConfig(
        preset="shakespeare-char-cpu",
        tokenizer="char",
        model=GPT2Config.preset("tiny"),
        steps=2000,
        eval_every=250,
        sample_tokens=200,
    ),
    # a minute or less on anything: to see that everything works
    "nano": TrainConfig(
        preset="nano",
        tokenizer="char",
        model=GPT2Config.preset("nano"),
        steps=200,
        batch_size=8,
        eval_every=50,
        eval_batches=10,
        sample_every=100,
    ),
}
PRESETS["gpt2-nano"] = dataclasses.replace(PRESETS["nano"], preset="gpt2-nano")
for _family in ("llama", "gemma"):
    PRESETS[f"{_family}-nano"] = dataclasses.replace(
        PRESETS["nano"].with_model(_family),
        preset=f"{_family}-nano",
        tokenizer="char",
        model=config_class(_family).preset("nano"),
    )
# as wide as is needed to learn something from hidden tokens, with short texts
_NANO = TrainConfig(
    tokenizer="bpe", steps=500, batch_size=64, lr=2e-3, weight_decay=0.01, eval_every=100, eval_batches=10
)
_NANO_SHAPES: dict[str, dict[str, Any]] = {
    "bert": dict(context=24, heads=4, channels=128, hidden=512, layers=2),
    "roberta": dict(context=24, heads=4, channels=128, hidden=512, layers=2),
    "distilbert": dict(context=24, heads=4, channels=128, hidden=512, layers=2),
    "xlnet": dict(heads=4, channels=128, hidden=512, layers=2),
    "bart": dict(context=32, channels=96, init_std=96**-0.5, **both_sides(2, 4, 256)),
}
for _family, _shape in _NANO_SHAPES.items():
    _config = _NANO.with_model(_family)
    _model = dataclasses.replace(_config.model, **_shape, dropout=0.0, vocab_size=512)
    if _family in ("bert", "roberta", "distilbert"):
        _model = dataclasses.replace(_model, attention_dropout=0.0)
    _task = dataclasses.replace(_config.task, length=24) if _family == "xlnet" else _config.task
    PRESETS[f"{_family}-nano"] = dataclasses.replace(_config, preset=f"{_family}-nano", model=_model, task=_task)
# benchmarks/translation.py: English and German captions
PRESETS["multi30k"] = dataclasses.replace(
    TrainConfig(beta2=0.98, weight_decay=1e-4, min_lr=0.0, steps=9000, warmup=700, eval_every=500, eval_batches=100),
    preset="multi30k",
    architecture="bart",
    model=BartConfig.preset("multi30k"),
    objective="pairs",
    task=None,
)
# The sizes of the papers, with their learning rates, for batches that one machine computes; see minillm/models.
_LARGE = TrainConfig(steps=100_000, batch_size=32, lr=3e-4, warmup=2000, eval_every=1000, sample_every=5000)
_RATES = {"gpt2": 6e-4, "bert": 1e-4, "distilbert": 1e-4, "roberta": 6e-4, "xlnet": 4e-4}  # of the others: 3e-4
_CHARACTERS = 256  # ids of a shape that are too few for pieces of words, such as those of tiny and baby


@functools.cache
def model_presets() -> dict[str, tuple[str, Any]]:
    """The family and the shape of every named size in minillm/models.

    A name that several families have is told apart by the family's: `gpt2-nano`, `bert-nano`.
    """
    sizes = {family: importlib.import_module(f"minillm.models.{family}").PRESETS for family in CONFIGS}
    times = Counter(name for named in sizes.values() for name in named)
    return {
        name if times[name] == 1 else f"{family}-{name}": (family, shape)
        for family, named in sizes.items()
        for name, shape in named.items()
    }


def preset(name: str) -> TrainConfig:
    """A configuration by its name: one of PRESETS, or that of a size in minillm/models.

    Raises: InputError for an unknown name, with the nearest known one.
    """
    if name in PRESETS:
        return PRESETS[name]
    known = model_presets()
    if name not in known:
        raise InputError(f"train: no preset is called {name!r}{did_you_mean(name, [*PRESETS, *known])}")
    family, shape = known[name]
    if shape.vocab_size <= _CHARACTERS:
        config = dataclasses.replace(TrainConfig().with_model(family), tokenizer="char")
    else:
        config = dataclasses.replace(_LARGE, lr=_RATES.get(family, 3e-4)).with_model(family)
    return dataclasses.replace(config, preset=name, model=shape)
