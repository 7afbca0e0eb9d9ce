"""LoRA (Hu et al. 2021, arXiv:2106.09685): a model is frozen, and thin matrices beside its weights are trained.

    model = add_lora(minillm.load("my-llama"), LoraConfig(rank=8))
    ...                                     # train as usual: the optimiser gets parameters that need a gradient
    save_lora(model, "my-adapter")          # a few megabytes, which PEFT reads
    merge(model).save_pretrained("merged")  # or a plain model

In reading order: config.py (the settings), places.py (which layers they mean, by PEFT's names and rules), layers.py
(adapters, and what puts them around a layer), model.py (add, switch off, merge, unmerge), peft.py (PEFT's files).
"""

from minillm.lora.config import LoraConfig
from minillm.lora.model import (
    above_width,
    adapters_off,
    add_lora,
    base_checksum,
    is_lora,
    load_lora_state_dict,
    lora_state_dict,
    merge,
    record_of,
    unmerge,
    untie,
)
from minillm.lora.peft import base_folder, base_of, is_adapter, load_lora, save_lora

__all__ = [
    "LoraConfig",
    "above_width",
    "adapters_off",
    "add_lora",
    "base_checksum",
    "base_folder",
    "base_of",
    "is_adapter",
    "is_lora",
    "load_lora",
    "load_lora_state_dict",
    "lora_state_dict",
    "merge",
    "record_of",
    "save_lora",
    "unmerge",
    "untie",
]
