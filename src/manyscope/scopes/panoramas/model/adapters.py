"""Adapters on disk, as peft reads them, and the language model with them merged in."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from manyscope.log import logger
from manyscope.scopes.panoramas.model.language import LORA, Language
from manyscope.tables.whole import whole_folder

ADAPTERS, MERGED = "adapters", "language"
_ROOT = "base_model.model."  # peft's name of the model that it wraps


def save_merged(network: Any, folder: Path) -> None:
    """Write the language model with its adapters merged in, and its tokeniser, into `folder`/language, as transformers
    and model.language.pretrained read it."""
    from peft.tuners.lora import LoraLayer

    language: Language = network.language
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in language.model.state_dict().items()}
    for name, layer in language.model.named_modules():
        if isinstance(layer, LoraLayer):
            own: Any = layer  # the kinds of layers have the methods, not their base
            state[f"{name}.weight"] = own.get_base_layer().weight + own.get_delta_weight("default")
    merged = type(language.model)(language.model.config)
    merged.load_state_dict({name: tensor for name, tensor in state.items() if LORA not in name})
    with whole_folder(folder / MERGED) as partial:
        merged.save_pretrained(partial)
        network.chat.tokenizer.save_pretrained(partial)
    logger.info("the language model with its adapters in %s", folder / MERGED)


def save_adapters(network: Any, folder: Path) -> None:
    """Write the language model's adapters, if it has any, into `folder`/adapters, for `PeftModel.from_pretrained`."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    language: Language = network.language
    if language.lora is None:
        return
    tensors = get_peft_model_state_dict(language.model, adapter_name="default")
    with whole_folder(folder / ADAPTERS) as partial:
        save_file({_ROOT + name: tensor.contiguous() for name, tensor in tensors.items()},
                  partial / "adapter_model.safetensors")  # fmt: skip
        config = copy(language.lora)
        config.target_modules = sorted(config.target_modules)  # peft keeps a set, and its order is another each time
        config.save_pretrained(partial)
        network.chat.tokenizer.save_pretrained(partial)
    logger.info("adapters in %s", folder / ADAPTERS)
