"""Placeholders: the environment, the site, the escape, and the types that they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import SettingsError
from manyscope.settings import Site, load_config, load_experiment
from manyscope.settings.source import Layer, Place, filled

NAMES = {"data_path": "/data", "number": "3e-4", "empty": None}


def fill(value: Any) -> Any:
    layer, problems = filled(Layer({"key": value}), NAMES, "config/local.yaml")
    assert problems == []
    return layer.values["key"]


def problem(value: str) -> str:
    layer = Layer({"a": {"b": [value]}}, {("a", "b", 0): Place("file.yaml", 4)})
    filled_, (line,) = filled(layer, NAMES, "config/local.yaml")
    assert filled_.values == layer.values
    return line


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUIT", "pear")
    monkeypatch.setenv("COUNT", "12")
    monkeypatch.setenv("NESTED", "${data_path}")
    monkeypatch.delenv("ABSENT", raising=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env:FRUIT}", "pear"),
        ("${env:COUNT}", 12),
        ("${number}", 3e-4),
        ("n${env:COUNT}", "n12"),
        ("${env:COUNT}${env:COUNT}", "1212"),
        ("${env:ABSENT:-7}", 7),
        ("${env:ABSENT:-}", None),
        ("${env:COUNT:-7}", 12),
        ("${data_path}/${env:FRUIT}.fits", "/data/pear.fits"),
        ("$${data_path}", "${data_path}"),
        ("a $${env:FRUIT} ${env:FRUIT}", "a ${env:FRUIT} pear"),
        ("${env:NESTED}", "${data_path}"),  # what is filled in is not read again
        ("$5 {x} $", "$5 {x} $"),
        (["${env:COUNT}", {"k": "${data_path}"}], [12, {"k": "/data"}]),
        (3, 3),
    ],
)
def test_what_stands_for_what(text: Any, value: Any) -> None:
    assert fill(text) == value
    assert type(fill(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${env:ABSENT}", "environment variable 'ABSENT' is not set; set it, or write ${env:ABSENT:-default}"),
        (
            "${data_pat}",
            "placeholder '${data_pat}' is unknown, allowed: data_path, number, empty, env:VARIABLE; did you",
        ),
        ("${zzz}", "placeholder '${zzz}' is unknown, allowed: data_path, number, empty, env:VARIABLE; set it under"),
        ("${empty}", "placeholder '${empty}' has no value; set empty in config/local.yaml"),
        ("x${data_path", "found '${' without '}', allowed: ${name}, ${env:VARIABLE}, or $${ for a literal ${"),
        ("${env:1X}", "placeholder '${env:1X}' is unknown"),
    ],
)
def test_bad_placeholders_name_the_line(text: str, message: str) -> None:
    assert problem(text).startswith(f"file.yaml:4: a.b[0]: {message}")


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    escaped = text.replace("${", "$${")
    if "$$${" not in escaped:  # a dollar before the escape is not itself escaped
        assert fill(escaped) == text


def test_placeholders_in_experiments_and_overrides(project: Any) -> None:
    project(
        local="data_path: /big\nvariables: {survey: dr3, n: '6'}\n",
        one="""
        scope: fake_scope:Fake
        model: {name: net}
        download:
          folder: ${data_path}/${survey}
          count: ${n}
        """,
    )
    settings: Any = load_experiment("one", overrides=["train.epochs=${env:COUNT}"])
    assert settings.download.folder == Path("/big/dr3")
    assert settings.download.count == 6
    assert settings.train.epochs == 12


def test_placeholders_in_the_workflow_file(project: Any) -> None:
    project(
        config="""
        experiments: [one]
        site_file: config/${env:FRUIT}.yaml
        results: ${data_path}/out
        shards: ${env:COUNT}
        set:
        - one.train.lr=${n}
        """,
        one="scope: fake_scope:Fake\nmodel: {name: net}\n",
        local="data_path: /wrong\n",
    )
    Path("config/pear.yaml").write_text("data_path: /right\nvariables: {n: '2'}\n")
    config = load_config()
    assert config.results == Path("/right/out")
    assert config.shards == 12
    assert config.experiments["one"].train.lr == 2


def test_missing_variable_is_reported_once_and_with_the_other_problems(project: Any) -> None:
    project(one="scope: fake_scope:Fake\nmodel: {name: net}\ntrain:\n  lr: ${env:ABSENT}\n  epochs: no\n")
    with pytest.raises(SettingsError) as error:
        load_experiment("one", site=Site())
    assert [line[len("config/experiments/one.yaml") :] for line in error.value.problems] == [
        ":4: train.lr: environment variable 'ABSENT' is not set; set it, or write ${env:ABSENT:-default}",
        ":5: train.epochs: found 'no' (text), allowed: a number > 0",
    ]


def test_missing_variable_in_the_workflow_file(project: Any) -> None:
    project(config="experiments: [one]\nsite_file: ${env:ABSENT}\n", one="scope: fake_scope:Fake\nmodel: {name: net}\n")
    with pytest.raises(SettingsError, match=r"config/config\.yaml:2: site_file: environment variable 'ABSENT' is not"):
        load_config()
