"""Overrides from the shell and from Snakemake: one parser, the same YAML."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import SettingsError
from manyscope.settings import Site, load_experiment, parse_override
from manyscope.settings.overrides import by_experiment, split_overrides
from manyscope.settings.source import Place

GOOD = "scope: fake_scope:Fake\nmodel:\n  name: net\n  args: {depth: 2}\n"


def value_of(text: str) -> Any:
    return parse_override(f"section.key={text}").values["section"]["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3", 3),
        ("true", True),
        ("on", "on"),
        ("two words", "two words"),
        ("'3'", "3"),
        ("a=b", "a=b"),
        ("[1, knn]", [1, "knn"]),
        ("{a: 1, b: {c: [x]}}", {"a": 1, "b": {"c": ["x"]}}),
        ("my_package.models:MyNet", "my_package.models:MyNet"),
        ("", None),
    ],
)
def test_value_is_yaml(text: str, value: Any) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_deep_keys_and_blanks() -> None:
    layer = parse_override(" model . args.x = 1 ", "galaxies")
    assert layer.values == {"model": {"args": {"x": 1}}}
    assert layer.place(("model", "args", "x")).source == "--set galaxies.model.args.x"


@given(st.integers() | st.booleans() | st.floats(allow_nan=False))
def test_numbers_and_truth_come_back(value: float) -> None:
    text = (
        str(value).lower() if not isinstance(value, float) or math.isfinite(value) else f"{value:+}".replace("i", ".i")
    )
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\u2028\u2029\ufeff"))


@given(printable)
def test_quoted_text_comes_back(value: str) -> None:
    assert value_of(json.dumps(value, ensure_ascii=False)) == value


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_./-]*", fullmatch=True))
def test_plain_words_come_back(value: str) -> None:
    if value.lower() not in ("null", "true", "false"):
        assert value_of(value) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lr", "--set train.lr: '=' is missing, allowed: section.key=value, such as train.lr=3e-4"),
        ("=3", "--set : the key has an empty part, allowed: section.key=value"),
        ("train.=3", "--set train.: the key has an empty part"),
        ("train..lr=3", "--set train..lr: the key has an empty part"),
        ("train.lr=[1", "--set train.lr: not YAML: while parsing a flow sequence"),
        ("train.x={a: 1, a: 2}", "--set train.x: a: the key is there twice; remove one"),
    ],
)
def test_bad_overrides(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_override(text)
    (line,) = error.value.problems
    assert line.startswith(message)


def test_bad_overrides_of_a_workflow_are_all_named() -> None:
    place = Place("config/config.yaml", 7)
    good, problems = by_experiment(
        [("a.b.c=1", None), ("lr=1", None), (".lr=1", place), ("a.b", None), ("a.d=[", None)]
    )
    assert [layer.values for layer in good["a"]] == [{"b": {"c": 1}}]
    assert [line.split(": ")[0] for line in problems] == [
        "--set lr",
        "config/config.yaml:7",
        "--set a.b",
        "--set a.d",
    ]


# Left: what Snakemake 9.27 hands over for `--config` with `set=` and the text in the comment.
@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (["galaxies.train.lr=3e-4"], ["galaxies.train.lr=3e-4"]),  # [galaxies.train.lr=3e-4]
        ("galaxies.train.lr=3e-4", ["galaxies.train.lr=3e-4"]),  # galaxies.train.lr=3e-4
        (["a.u.n=30", "a.train.lr=1e-4"], ["a.u.n=30", "a.train.lr=1e-4"]),  # [a.u.n=30,a.train.lr=1e-4]
        ("[a.b.c=1, a.x.y={k: 1, l: [2]}]", ["a.b.c=1", "a.x.y={k: 1, l: [2]}"]),  # the same: not YAML as a whole
        ("[a.b.c=[1,2],a.d.e=3]", ["a.b.c=[1,2]", "a.d.e=3"]),
        ("[a.b.c=${env:X}]", ["a.b.c=${env:X}"]),
        ("a.b.c=1 a.d.e=2", ["a.b.c=1", "a.d.e=2"]),
        ("a.b.c=it's one, a.d.e=two words", ["a.b.c=it's one", "a.d.e=two words"]),
        ("a.b.c='x, y.z=1' a.d.e=2", ["a.b.c='x, y.z=1'", "a.d.e=2"]),
        ("a.b.c={x: 'a.b=1, c.d=2'}", ["a.b.c={x: 'a.b=1, c.d=2'}"]),
        ([], []),
        (None, []),
        ("", []),
    ],
)
def test_what_snakemake_hands_over(given: object, texts: list[str]) -> None:
    assert split_overrides(given) == texts


@pytest.mark.parametrize("given", [{"a.b": "3"}, [{"a.b": "3"}], 3, [True]])
def test_what_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(SettingsError, match=r"allowed: a list of EXPERIMENT\.section\.key=value"):
        split_overrides(given)


def test_overrides_reach_the_settings(project: Any) -> None:
    project(one=GOOD)
    given = ["model.args.width=8", "model.args={depth: 3}", "train.lr=1", "train.lr=2", "download.sizes=[5]"]
    settings: Any = load_experiment("one", overrides=given, site=Site())
    assert settings.model.args == {"depth": 3, "width": 8}
    assert settings.train.lr == 2
    assert settings.download.sizes == (5,)


def test_problems_name_the_override(project: Any) -> None:
    project(one=GOOD)
    given = ["train.lr=fast", "train.lrr=1", "trian.lr=1", "umap={n_neighbors: 1}", "gather.lof_neighbours=", "x"]
    with pytest.raises(SettingsError) as error:
        load_experiment("one", Path("config/experiments"), given, Site())
    assert sorted(error.value.problems) == [
        "--set gather.lof_neighbours: found nothing (null), allowed: a whole number > 0",
        "--set train.lr: found 'fast' (text), allowed: a number > 0",
        "--set train.lrr: unknown key; did you mean 'lr'?",
        "--set trian.lr: trian: unknown key; did you mean 'train'?",
        "--set umap: umap.n_neighbors: found 1, allowed: a whole number >= 2",
        "--set x: '=' is missing, allowed: section.key=value, such as train.lr=3e-4",
    ]
