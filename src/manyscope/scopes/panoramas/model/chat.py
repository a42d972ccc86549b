"""Questions and answers as tokens: the language model's own tokeniser and chat template, labels by its marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyscope.errors import CheckpointError, DataError, SettingsError
from manyscope.scopes.panoramas.data.turns import WORD
from manyscope.scopes.panoramas.settings import LanguageSettings

VISION = "<|vision|>"
"""Where the views stand in a rendered conversation."""
IGNORED = -100
"""The label of a token that is not learned."""
_PAD, _UNKNOWN, _SYSTEM, _USER, _ASSISTANT, _END = (
    "<|pad|>",
    "<|unknown|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)

# The formats are those of the models' own templates, with marks around what the model says, which most of those lack.
_TEMPLATES = {
    "plain": (
        "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' -}}"
        "{%- if m['role'] == 'assistant' -%}{%- generation -%}{{- m['content'] + '<|end|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- m['content'] -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    ),
    "chatml": (
        "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\n' -}}"
        "{%- if m['role'] == 'assistant' -%}{%- generation -%}{{- m['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
        "{{- '\n' -}}{%- else -%}{{- m['content'] + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    ),
    "llama3": (
        "{{- bos_token -}}{%- for m in messages -%}"
        "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' -}}"
        "{%- if m['role'] == 'assistant' -%}{%- generation -%}{{- m['content'] + '<|eot_id|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- m['content'] + '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
    ),
    "gemma": (  # it knows no system: what the system says begins the user's message
        "{{- bos_token -}}{%- set first = namespace(text='') -%}{%- for m in messages -%}"
        "{%- if m['role'] == 'system' -%}{%- set first.text = m['content'] + '\n\n' -%}"
        "{%- elif m['role'] == 'assistant' -%}{{- '<start_of_turn>model\n' -}}"
        "{%- generation -%}{{- m['content'] + '<end_of_turn>' -}}{%- endgeneration -%}{{- '\n' -}}"
        "{%- else -%}{{- '<start_of_turn>user\n' + first.text + m['content'] + '<end_of_turn>\n' -}}"
        "{%- set first.text = '' -%}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
    ),
}


@dataclass(frozen=True)
class Encoded:
    """A turn behind the views.

    Attributes:
        ids: of the tokens that follow the views, without the last one, which nothing follows.
        labels: for each the token that follows it, where the answer or its end is what follows; else IGNORED.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]


class Chat:
    """What a language model is shown of a question.

    Every conversation begins with the same tokens, `before`, then come the views, then what belongs to the turn.

    Args:
        tokenizer: of transformers, with a chat template.
        settings: system, prompt, most_tokens and long_text are read.
        views: tokens of the views, for the limit.

    Attributes:
        before: tokens in front of the views.
        end: the token that ends an answer.

    Raises:
        CheckpointError: the template cannot be used, has no marks of what the model generates, or does not show where
            the views stand.
        SettingsError: the prompt has no place for the question.
    """

    def __init__(self, tokenizer: Any, settings: LanguageSettings, views: int) -> None:
        self.tokenizer, self._settings, self._views = tokenizer, settings, views
        named = settings.chat_template or f"null ({getattr(tokenizer, 'name_or_path', '') or 'the own one'})"
        self._place = f"model.language.chat_template: {named}"
        self._encoded: dict[tuple[str, str], Encoded] = {}
        self._asked: dict[str, tuple[int, ...]] = {}
        if "{query}" not in settings.prompt:
            raise SettingsError(f"model.language.prompt: {settings.prompt!r} has no {{query}}, the question's place")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if VISION not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"extra_special_tokens": [VISION]})
        self._mark = tokenizer.convert_tokens_to_ids(VISION)
        ids, made = self._render("a", "a")
        if not any(made):
            raise CheckpointError(
                "the chat template does not mark what the model generates",
                place=self._place,
                allowed="a template with {% generation %} … {% endgeneration %}",
                remedy="set it to chatml, llama3 or gemma, whichever is the model's format, or to a .jinja file",
            )
        self.before = self._split(ids)[0]
        self.end = [token for token, own in zip(ids, made, strict=True) if own][-1]

    def encode(self, question: str, answer: str) -> Encoded:
        """The turn for training.

        Raises:
            DataError: it does not fit into most_tokens, or the template's marks do not hold the answer and its end.
        """
        if (question, answer) not in self._encoded:
            self._encoded[question, answer] = self._fitted(question, lambda text: self._encode(text, answer))
        return self._encoded[question, answer]

    def ask(self, question: str) -> tuple[int, ...]:
        """The tokens behind the views up to where the answer begins.

        Raises:
            DataError: the question does not fit into most_tokens.
        """
        if question not in self._asked:
            self._asked[question] = self._fitted(question, self._ask).ids
        return self._asked[question]

    def words(self, question: str) -> list[int]:
        """The tokens of the question alone, without prompt and template."""
        return list(self.tokenizer(question, add_special_tokens=False)["input_ids"]) or [self.end]

    def text(self, ids: Sequence[int]) -> str:
        """An answer from its tokens, which may go on behind its end."""
        ids = list(ids)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _fitted(self, question: str, encode: Callable[[str], Encoded]) -> Encoded:
        """Cuts the beginning of a question that is too long, if it may, and as little as it can."""
        limit, cut = self._settings.most_tokens - len(self.before) - self._views, 0
        encoded, words = encode(question), self.words(question)
        while len(encoded.ids) + 1 > limit:
            cut += len(encoded.ids) + 1 - limit
            if self._settings.long_text == "refuse" or cut >= len(words):
                raise DataError(
                    f"{len(encoded.ids) + 1} tokens follow the {len(self.before) + self._views} of the beginning and"
                    " the views",
                    place=f"question {question[:60]!r}",
                    allowed=f"{self._settings.most_tokens} in all (model.language.most_tokens)",
                    remedy="raise most_tokens, use fewer views, or set model.language.long_text to cut",
                )
            encoded = encode(str(self.tokenizer.decode(words[cut:])))
        return encoded

    def _encode(self, question: str, answer: str) -> Encoded:
        ids, made = self._render(question, answer)
        own = [token for token, mark in zip(ids, made, strict=True) if mark]
        if self.text(own).split() != self.text(self.words(answer)).split() or self.end not in own:
            raise DataError(
                f"the chat template marks {self.tokenizer.decode(own)!r} as the answer to {question!r}",
                place=self._place,
                allowed=f"{answer!r} and the token that ends it",
            )
        before, after = self._split(ids)
        marks = made[len(before) + 1 :]
        last = max(i for i, mark in enumerate(marks) if mark)
        labels = [after[i + 1] if marks[i + 1] else IGNORED for i in range(last)]
        return Encoded(tuple(after[:last]), tuple(labels))

    def _ask(self, question: str) -> Encoded:
        ids = self._template(self._messages(question), add_generation_prompt=True, return_dict=False)
        return Encoded(tuple(self._split(ids)[1]), ())

    def _messages(self, question: str, answer: str | None = None) -> list[dict[str, str]]:
        said = VISION + self._settings.prompt.replace("{query}", question)
        messages = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        messages.append({"role": "user", "content": said})
        return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]

    def _render(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        rendered = self._template(self._messages(question, answer), return_dict=True, return_assistant_tokens_mask=True)
        return list(rendered["input_ids"]), list(rendered["assistant_masks"])

    def _template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        from jinja2 import TemplateError

        from manyscope.scopes.panoramas.model.pretrained import first_line

        try:
            return self.tokenizer.apply_chat_template(messages, **options)
        except (TemplateError, TypeError, ValueError) as error:  # those of what a template computes, too
            roles = ", ".join(message["role"] for message in messages)
            raise CheckpointError(
                f"the chat template fails ({first_line(error)}) with messages of {roles}",
                place=self._place,
                remedy="set it to chatml, llama3 or gemma, whichever is the model's format, or mend your .jinja file;"
                " if it knows no system, leave model.language.system empty",
            ) from error

    def _split(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        ids = list(ids)
        if ids.count(self._mark) != 1:
            raise CheckpointError(
                f"the chat template shows the views {ids.count(self._mark)} times",
                place=self._place,
                allowed="every message once",
            )
        place = ids.index(self._mark)
        return ids[:place], ids[place + 1 :]


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokeniser whose tokens are whole words in lower case, for a language model of random numbers."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [_PAD, _UNKNOWN, _SYSTEM, _USER, _ASSISTANT, _END, VISION]
    known = dict.fromkeys([*special, *(word.lower() for word in words)])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD.pattern), "removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="\n", cleanup=False)  # words between blanks
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, unk_token=_UNKNOWN, eos_token=_END,
        extra_special_tokens=[_SYSTEM, _USER, _ASSISTANT, VISION],
    )  # fmt: skip
    made.chat_template = _TEMPLATES["plain"]
    return made


def template(name: str) -> str:
    """A chat template by name, or from a file.

    Raises:
        SettingsError: neither.
    """
    if name in _TEMPLATES:
        return _TEMPLATES[name]
    path = Path(name)
    if path.suffix != ".jinja" or not path.is_file():
        allowed = f"{', '.join(_TEMPLATES)}, or a .jinja file that exists"
        raise SettingsError(f"model.language.chat_template: {name!r} is unknown; allowed: {allowed}")
    return path.read_text(encoding="utf-8")
