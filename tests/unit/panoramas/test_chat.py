from __future__ import annotations

import pytest

from manyscope.errors import CheckpointError, DataError, SettingsError
from manyscope.scopes.panoramas.model.chat import IGNORED, VISION, Chat, template, word_tokenizer
from manyscope.scopes.panoramas.settings import LanguageSettings

WORDS = ["what", "is", "left", "of", "the", "red", "blue", "cube", "ball", ",", "?", "nothing", "back-left", "a"]


def chat(views=4, tokenizer=None, **settings):
    return Chat(tokenizer or word_tokenizer(WORDS), LanguageSettings(**settings), views)


def test_only_the_answer_and_its_end_are_learned():
    made = chat()
    encoded = made.encode("what is left of the red cube ?", "blue ball")
    words = [made.tokenizer.decode([token]) for token in encoded.ids]
    assert words == ["what", "is", "left", "of", "the", "red", "cube", "?", "<|assistant|>", "blue", "ball"]
    learned = [label for label in encoded.labels if label != IGNORED]
    assert [made.tokenizer.decode([label]) for label in learned] == ["blue", "ball", "<|end|>"]
    assert encoded.labels[:8] == (IGNORED,) * 8


def test_a_question_is_asked_as_it_was_trained():
    made = chat(system="a the")
    question = "what is left of the red cube ?"
    asked, trained = made.ask(question), made.encode(question, "blue ball")
    assert trained.ids[: len(asked)] == asked
    assert [made.tokenizer.decode([token]) for token in made.before] == ["<|system|>", "a", "the", "<|user|>"]


def test_hyphenated_words_are_one_token_and_unknown_ones_are_marked():
    made = chat()
    assert len(made.words("back-left")) == 1
    assert made.words("zebra") == [made.tokenizer.unk_token_id]


def test_text_ends_at_the_end():
    made = chat()
    ids = made.words("blue ball")
    assert made.text([*ids, made.end, *ids]) == "blue ball"
    assert made.text([]) == ""


def test_a_question_that_is_too_long_is_refused():
    made = chat(most_tokens=12)
    with pytest.raises(DataError, match=r"12 in all.*most_tokens"):
        made.encode("what is left of the red cube ?", "blue ball")
    with pytest.raises(DataError, match="most_tokens"):
        made.ask("what is left of the red cube what is left of ?")


def test_a_question_that_is_too_long_is_cut_at_its_beginning_and_the_answer_stays():
    made = chat(most_tokens=12, long_text="cut")
    encoded = made.encode("what is left of the red cube ?", "blue ball")
    words = [made.tokenizer.decode([token]) for token in encoded.ids]
    assert len(made.before) + 4 + len(encoded.ids) + 1 == 12
    assert words[-4:] == ["?", "<|assistant|>", "blue", "ball"]
    with pytest.raises(DataError, match="most_tokens"):
        made.encode("what ?", "blue ball blue ball blue ball blue ball")


def test_a_template_without_generation_marks_is_refused():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(CheckpointError, match=r"does not mark what the model generates.*chatml"):
        chat(tokenizer=tokenizer)


def test_a_template_that_marks_more_than_the_answer_is_refused():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ 'red ' + m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="marks"):
        chat(tokenizer=tokenizer).encode("what ?", "blue")


def test_a_template_that_loses_the_views_is_refused():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = "{% for m in messages %}{% generation %}{{ 'a' }}{% endgeneration %}{% endfor %}"
    with pytest.raises(CheckpointError, match="shows the views 0 times"):
        chat(tokenizer=tokenizer)


RAISES = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"


@pytest.mark.parametrize(
    ("text", "system", "reason"),
    [
        (RAISES + "{% endif %}{% endfor %}", "be brief", "System role not supported.*system, user"),
        ("{% for m in messages %}{{ m['content'] }}", "", "endfor"),
        ("{{ 1 + messages }}", "", "unsupported operand"),
    ],
)
def test_a_template_that_fails_says_why(text, system, reason):
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = text
    with pytest.raises(
        CheckpointError, match=rf"^model\.language\.chat_template: null.*: the chat template fails.*{reason}"
    ):
        chat(tokenizer=tokenizer, system=system)


CHATML = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
LLAMA3 = (
    "B<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
)
GEMMA = "B<start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"


@pytest.mark.parametrize(("name", "text"), [("chatml", CHATML), ("llama3", LLAMA3), ("gemma", GEMMA)])
def test_known_formats(name, text):
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template, tokenizer.bos_token = template(name), "B"
    said = [{"role": r, "content": c} for r, c in (("system", "S"), ("user", "Q"), ("assistant", "A"))]
    assert tokenizer.apply_chat_template(said, tokenize=False) == text
    prompt = tokenizer.apply_chat_template(said[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert text[len(prompt) :].startswith("A")


def test_an_unknown_template_names_the_known_ones(tmp_path):
    with pytest.raises(SettingsError, match=r"'chatm' is unknown.*chatml"):
        template("chatm")
    file = tmp_path / "own.jinja"
    file.write_text("x")
    assert template(str(file)) == "x"


def test_a_prompt_needs_a_place_for_the_question():
    with pytest.raises(SettingsError, match="query"):
        chat(prompt="describe it")


def test_the_mark_of_the_views_is_added_to_a_tokenizer_that_lacks_it():
    assert VISION in word_tokenizer([]).get_vocab()
