"""The language model: of random numbers or pretrained, with adapters or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyscope.errors import CheckpointError, SettingsError
from manyscope.scopes.panoramas.data.hub import require
from manyscope.scopes.panoramas.model.chat import Chat, template, word_tokenizer
from manyscope.scopes.panoramas.model.pretrained import first_line, load_pretrained
from manyscope.scopes.panoramas.settings import LanguageSettings, LoraSettings

LORA = "lora_"
"""In the names of adapters' parameters."""


class Language(nn.Module):
    """A causal language model that is given vectors.

    Args:
        tokenizer: whose words it knows.
        weights: cache of the hub.

    Attributes:
        width: of its words' vectors.
        fixed: whether its own weights, beside the adapters, never learn and are found elsewhere.
        window: how many tokens back some of its layers see, themselves among them; None where that is no limit.

    Raises:
        CheckpointError: the pretrained model is missing, incomplete, or has layers that do not follow a mask.
        SettingsError: the adapters have no layers of these names, or the widths do not fit one another.
    """

    def __init__(self, settings: LanguageSettings, lora: LoraSettings, tokenizer: Any, weights: Path) -> None:
        super().__init__()
        self.model = _pretrained(settings, weights) if settings.pretrained else _random(settings, tokenizer)
        self.width = int(self.model.get_input_embeddings().weight.shape[1])
        self.lora = _add_adapters(self.model, lora) if lora.rank else None
        self.fixed = settings.pretrained is not None and lora.rank > 0
        self._layers, self.window = _windows(self.model.config.get_text_config(), settings.most_tokens)

    def words(self, ids: Tensor) -> Tensor:
        """The vectors of tokens, (…, width)."""
        return self.model.get_input_embeddings()(ids)

    def states(self, vectors: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """What the last layer makes of vectors.

        Args:
            vectors: (rows, tokens, width).
            mask: (rows, 1, tokens, tokens) bool, what sees what.
            positions: (rows, tokens) int64. Of tokens that see each other, they are as far apart as the tokens
                themselves if there is a window.
        """
        body = self.model.get_decoder()
        masks = {"full_attention": mask}
        if self.window is not None:
            apart = positions[:, None, :, None] - positions[:, None, None, :]
            masks["sliding_attention"] = mask & (apart < self.window)
        if self.model.config._attn_implementation == "eager":
            least = torch.finfo(vectors.dtype).min
            masks = {kind: torch.where(seen, 0.0, least).to(vectors.dtype) for kind, seen in masks.items()}
        # A model that has layers of both kinds takes a mask for each; as one mask it would give it to all layers.
        given = masks.get(self._layers, masks)
        return body(
            inputs_embeds=vectors, attention_mask=given, position_ids=positions, use_cache=False
        ).last_hidden_state

    def scores(self, states: Tensor) -> Tensor:
        """Logits of the next token, (…, words)."""
        return self.model.get_output_embeddings()(states)

    def learning(self, part: str) -> list[nn.Parameter]:
        """The parameters of its part: adapters, or language, which is all others."""
        own = part == "adapters"
        return [p for name, p in self.model.named_parameters() if (LORA in name) == own]

    @torch.no_grad()
    def answer(self, vectors: Tensor, mask: Tensor, positions: Tensor, chat: Chat, most_words: int) -> list[str]:
        """The most probable words, one after another.

        Args:
            vectors: prompts, (rows, tokens, width), padded on the left.
            mask: (rows, tokens) int64, 0 for padding.
            positions: (rows, tokens) int64.
        """
        made = self.model.generate(
            inputs_embeds=vectors,
            attention_mask=mask,
            position_ids=positions,
            max_new_tokens=most_words,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=chat.end,
            pad_token_id=chat.tokenizer.pad_token_id,
        )
        return [chat.text(row) for row in made.tolist()]

    @torch.no_grad()
    def meaning(self, texts: Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
        """One vector for each text, (texts, width): the mean of what the last layer makes of its tokens alone."""
        found = []
        for text in texts:  # each by itself, so that its digits do not depend on the others
            ids = torch.tensor([list(text)], device=device)
            size = ids.shape[1]
            mask = torch.ones(1, 1, size, size, device=device).tril().bool()
            found.append(self.states(self.words(ids), mask, torch.arange(size, device=device)[None])[0].float().mean(0))
        return torch.stack(found)


def load_tokenizer(settings: LanguageSettings, words: Sequence[str], weights: Path) -> Any:
    """The tokeniser of the pretrained model, or one of these words.

    Raises:
        CheckpointError: the pretrained model is missing or has no readable tokeniser.
        SettingsError: the chat template is unknown.
    """
    if settings.pretrained:
        from transformers import AutoTokenizer

        folder = require(settings.pretrained, weights)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no readable tokeniser ({first_line(error)})", place=folder) from error
    else:
        tokenizer = word_tokenizer(words)
    if settings.chat_template:
        tokenizer.chat_template = template(settings.chat_template)
    elif tokenizer.chat_template is None:
        raise CheckpointError(
            "the model has no chat template",
            place=f"model.language.pretrained ({settings.pretrained})",
            remedy="set model.language.chat_template to chatml, llama3 or gemma, or to a .jinja file",
        )
    return tokenizer


def _pretrained(settings: LanguageSettings, weights: Path) -> Any:
    from transformers import AutoModelForCausalLM

    assert settings.pretrained
    folder = require(settings.pretrained, weights)
    return load_pretrained(AutoModelForCausalLM, folder, "language model")


def _windows(config: Any, most_tokens: int) -> tuple[str, int | None]:
    """The kind of all layers, as transformers names it, or "both"; and the window of those that have one.

    Raises:
        CheckpointError: there is another kind.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"the language model has layers of the kind {min(other)}, for which turns about one panorama are not apart",
            place="model.language.pretrained",
            allowed="models with full or sliding attention",
        )
    if "sliding_attention" not in kinds or window is None or window >= most_tokens:
        return "full_attention", None  # a window that holds everything is none
    return ("both" if len(kinds) > 1 else "sliding_attention"), int(window)


def _random(settings: LanguageSettings, tokenizer: Any) -> Any:
    import transformers

    config, model = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }[settings.type]
    return model(
        config(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=settings.mlp_width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            head_dim=settings.head_width,
            max_position_embeddings=settings.most_tokens,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=settings.initial_range,
            attn_implementation="sdpa",
        )
    )


def _add_adapters(model: Any, lora: LoraSettings) -> Any:
    """Put adapters into a model's layers; returns their configuration."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise SettingsError(f"model.lora.targets: {first_line(error)}") from error
    return config
