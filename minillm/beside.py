"""The files beside a model's weights: its tokenizer, its chat template, and the ids that end a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.errors import InputError
from minillm.pretrained import SavedWith
from minillm.stored import CONFIG, read_json, read_text

if TYPE_CHECKING:
    from minillm.chat_templates import ChatTemplate
    from minillm.tokenizers import Tokenizer
    from minillm.training.run import Run

ENCODERS = ("bert", "distilbert", "roberta", "xlnet", "bart")  # families that want special tokens around a text


def is_run(path: Path) -> bool:
    """True for a directory of `minillm train`, even one that was stopped before its first step."""
    return (path / "checkpoints").is_dir() or (path / "metrics.jsonl").exists()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a model, from any form that `load` reads, or from a tokenizer.json.

    Raises: InputError for a file that is missing or damaged, or has an unsupported part.
    """
    from minillm.tokenizers import Tokenizer  # imported late, to keep `import minillm` fast

    path = Path(path)
    if path.suffix == ".gguf":
        from minillm.gguf import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    folder = path.parent if path.suffix == ".safetensors" else path
    folder = folder.parent if folder.name == "checkpoints" and is_run(folder.parent) else folder
    return _old_tokenizer(folder) or Tokenizer.from_file(folder / "tokenizer" if is_run(folder) else folder)


def _old_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder that has no tokenizer.json, but BERT's or GPT-2's older files; else None."""
    from minillm.tokenizers import BPETokenizer, WordPieceTokenizer
    from minillm.tokenizers.files import names_beside

    if (folder / "tokenizer.json").exists() or not (folder / CONFIG).is_file():
        return None
    kind = read_json(folder / CONFIG).get("model_type")
    if kind in ("bert", "distilbert") and (folder / "vocab.txt").is_file():
        said = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        return WordPieceTokenizer.from_vocab_txt(folder / "vocab.txt", lowercase=said.get("do_lower_case", True))
    if kind in ("gpt2", "roberta", "bart") and (folder / "merges.txt").is_file():
        tokenizer = BPETokenizer.from_gpt2_files(folder / "vocab.json", folder / "merges.txt")
        if kind != "gpt2":
            tokenizer.around = ["<s>"], ["</s>"]
        names = {"eos_token": "</s>", "bos_token": "<s>"} if kind != "gpt2" else {}
        tokenizer.name_special_tokens(**names | names_beside("load", folder))
        return tokenizer
    return None


def ids_of(run: Run) -> SavedWith:
    """The ids that begin, end and pad a text, by a run's tokenizer; its end of text begins texts too.

    Where the run learned a conversation, what ends an answer ends a text.
    """
    tokenizer, template = run.tokenizer, template_of_run(run, run.tokenizer)
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ends = list(dict.fromkeys([*(template.stop_ids(tokenizer) if template else []), *eos]))
    ids = {
        "bos_token_id": tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": tokenizer.pad_id,
    }
    ids = {key: i for key, i in ids.items() if i is not None}
    return SavedWith(ids, ids)


def with_ends(run: Run, model: Any) -> Tokenizer:
    """The tokenizer of a run, which from now on puts around a text what the run's training put there."""
    from minillm.data.frames import frame_of

    tokenizer, family = run.tokenizer, run.config.architecture
    names = {i: token for token, i in tokenizer.special_tokens.items()}
    if tokenizer.build_inputs_with_special_tokens([]):
        return tokenizer
    if hasattr(model, "conditioned"):
        tokenizer.around = [], [names[model.config.eos_id]]
    elif family in ENCODERS:
        frame = frame_of(tokenizer, family)
        tokenizer.around = [names[i] for i in frame.before], [names[i] for i in frame.after]
    return tokenizer


def template_of_run(run: Run | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a run that learned one, or the one that a tokenizer's special tokens tell."""
    from minillm.chat_templates import chat_template, template_for

    if run is not None and learned_to_talk(run):
        return template_for(tokenizer, run.config.task.template)
    try:
        return chat_template(tokenizer)
    except InputError:
        return None


def learned_to_talk(run: Run) -> bool:
    """True for a run whose task writes conversations by a template."""
    return hasattr(run.config.task, "template")


def chat_text_in(folder: Path) -> str:
    """The chat template among the files of a folder, or an empty text."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    file = folder / "tokenizer_config.json"
    found = read_json(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else ""
