"""Reading whole projects: what is merged over what, and what every kind of bad input is answered with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import ManyscopeError
from manyscope.settings import (
    Config,
    SettingsError,
    Site,
    known_experiments,
    load_config,
    load_experiment,
    scope_settings,
    stage_settings,
)
from manyscope.settings.source import Layer, merged, plain_value

GOOD = "scope: fake_scope:Fake\nmodel:\n  name: net\n"


def problems(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load_config(*args, **kwargs)
    assert str(error.value) == "\n".join(error.value.problems)
    return list(error.value.problems)


def problems_of(text: str, project: Any) -> list[str]:
    project(bad=text)
    with pytest.raises(SettingsError) as error:
        load_experiment("bad", site=Site())
    return [line.removeprefix("config/experiments/bad.yaml") for line in error.value.problems]


def test_defaults_and_file_meet(project: Any) -> None:
    project(config="experiments: [one]", one=GOOD + "train:\n  lr: 3e-4\n  schedule: constant\n")
    config = load_config()
    settings = config.experiments["one"]
    assert settings.train.lr == 3e-4
    assert settings.train.schedule == "constant"
    assert settings.train.epochs == 10
    assert settings.download.count == 10  # type: ignore[attr-defined]
    assert (config.shards, config.results, config.site) == (1, Path("results"), Site())


def test_layers_in_order(project: Any) -> None:
    project(one="scope: fake_scope:Plugin\nmodel:\n  args: {depth: 3}\ntrain:\n  lr: 0.125\n")
    settings = load_experiment("one", overrides=["train.epochs=2", "train.epochs=3"], site=Site())
    assert settings.model.name == "from_defaults"
    assert settings.model.args == {"width": 8, "depth": 3}
    assert settings.train.lr == 0.125
    assert settings.train.epochs == 3
    assert settings.train.batch_size == 128


def test_without_the_file_the_plugin_and_then_the_class_decide(project: Any) -> None:
    project(one="scope: fake_scope:Plugin\n", two=GOOD)
    assert load_experiment("one", site=Site()).train.lr == 0.25
    assert load_experiment("two", site=Site()).train.lr == 0.5


def test_yaml_is_read_by_version_1_2(project: Any) -> None:
    project(one="scope: fake_scope:Fake\nmodel:\n  name: on\n  args: {a: 1e3, b: no, c: 012, d: 2001-01-01, e: 0x1f}\n")
    model = load_experiment("one", site=Site()).model
    assert model.name == "on"
    assert model.args == {"a": 1000.0, "b": "no", "c": 12, "d": "2001-01-01", "e": 31}
    assert isinstance(model.args["a"], float)


def test_section_with_nothing_in_it_sets_nothing(project: Any) -> None:
    project(one="scope: fake_scope:Plugin\ntrain:\n  # lr: 1\n")
    assert load_experiment("one", site=Site()).train.lr == 0.25


def test_lists_and_paths_are_taken_though_text_is_no_number(project: Any) -> None:
    project(one=GOOD + "download:\n  sizes: [4]\n  folder: there\n  limit: 3\n  shape: {kind: ring, width_px: 2}\n")
    download: Any = load_experiment("one", site=Site()).download
    assert (download.sizes, download.folder, download.limit, download.shape.width_px) == ((4,), Path("there"), 3, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "train:\n  lrr: 1\n", [":5: train.lrr: unknown key; did you mean 'lr'?"]),
        (GOOD + "train:\n  lr: fast\n", [":5: train.lr: found 'fast' (text), allowed: a number > 0"]),
        (GOOD + "train:\n  lr: '3'\n", [":5: train.lr: found '3' (text), allowed: a number > 0"]),
        (GOOD + "train:\n  lr: -1\n", [":5: train.lr: found -1, allowed: a number > 0"]),
        (GOOD + "train:\n  lr:\n", [":5: train.lr: found nothing (null), allowed: a number > 0"]),
        (GOOD + "train:\n  lr: [1]\n", [":5: train.lr: found [1] (a list), allowed: a number > 0"]),
        (GOOD + "train:\n  lr: {a: 1}\n", [":5: train.lr: found {'a': 1} (a mapping), allowed: a number > 0"]),
        (GOOD + "train:\n  lr: .inf\n", [":5: train.lr: found inf, allowed: a finite number"]),
        (GOOD + "train:\n  batch_size: 1.5\n", [":5: train.batch_size: found 1.5, allowed: a whole number > 0"]),
        (
            GOOD + "train:\n  warmup_fraction: 2\n",
            [":5: train.warmup_fraction: found 2, allowed: a number from 0 to 1"],
        ),
        (
            GOOD + "train:\n  tracker: mlflo\n",
            [":5: train.tracker: found 'mlflo' (text), allowed: one of: mlflow, tensorboard, wandb, none; did you"],
        ),
        (
            GOOD + "train:\n  schedule: cosin\n",
            [":5: train.schedule: found 'cosin' (text): schedule 'cosin' is unknown; known: cosine, constant"],
        ),
        (GOOD + "umap:\n  components: 4\n", [":5: umap.components: found 4, allowed: one of: 2, 3"]),
        (
            GOOD + "umap:\n  standardize: 1\n",
            [":5: umap.standardize: found 1, allowed: true or false"],
        ),
        (
            GOOD + "gather:\n  outlier_scores:\n  - knn\n  - lif\n",
            [
                ":7: gather.outlier_scores[1]: found 'lif' (text), allowed: one of: knn, lof; did you mean 'lof'?",
            ],
        ),
        (
            GOOD + "gather:\n  outlier_scores: knn\n",
            [":5: gather.outlier_scores: found 'knn' (text), allowed: a list, each one of: knn, lof"],
        ),
        (
            GOOD + "download:\n  sizes: []\n",
            [":5: download.sizes: found [] (a list), allowed: a list of 1 or more items, each a whole number > 0"],
        ),
        (
            GOOD + "download:\n  limit: some\n",
            [":5: download.limit: found 'some' (text), allowed: a whole number > 0 or one of: all"],
        ),
        (
            GOOD + "download:\n  shape:\n    radius_px: 2\n",
            [":5: download.shape: key 'kind': missing, allowed: one of: disc, ring"],
        ),
        (
            GOOD + "download:\n  shape: {kind: dics}\n",
            [":5: download.shape: key 'kind': found 'dics' (text), allowed: one of: disc, ring; did you mean 'disc'?"],
        ),
        (
            GOOD + "download:\n  shape:\n    kind: ring\n    radius_px: 2\n",
            [":7: download.shape.radius_px: unknown key; known: kind, width_px"],
        ),
        (GOOD + "download:\n  low: 2\n", [":4: download: low 2.0 is not below high 1.0"]),
        (GOOD + "title: 7\n", [":4: title: found 7, allowed: text; put it in quotes"]),
        (GOOD + "lr: 1\n", [":4: lr: unknown key; did you mean 'train.lr'?"]),
        (GOOD + "seed: 1\n", [":4: seed: unknown key; did you mean 'download.seed' or"]),
        (GOOD + "zzz: 1\n", [":4: zzz: unknown key; known: scope, title, download"]),
        (GOOD + "train: 3\n", [":4: train: found 3, allowed: a mapping with the keys seed, epochs"]),
        ("scope: fake_scope:Fake\n", [": model: missing, allowed: a mapping with the keys name, args"]),
        ("scope: fake_scope:Fake\nmodel:\n  args: {}\n", [":2: model.name: missing, allowed: text"]),
        ("model: {name: net}\n", [": scope: missing, allowed: "]),
        ("scope: 3\n", [":1: scope: found 3, allowed: "]),
        (
            "scope: fake_scope:Fakee\n",
            [":1: scope: fake_scope:Fakee: module 'fake_scope' has no 'Fakee'; did you mean 'Fake'?"],
        ),
        ("scope: no_such_module:X\n", [":1: scope: no_such_module:X: module 'no_such_module' cannot be imported"]),
        ("scope: fake_scope:Empty\n", [":1: scope: scope 'fake_scope:Empty' has no settings model"]),
        (GOOD + "train:\n  lr: 1\n  lr: 2\n", [":6: train.lr: the key is there twice (first in line 5); remove one"]),
        (GOOD + "model: {}\n", [":4: model: the key is there twice (first in line 2); remove one"]),
        (GOOD + "train: [1\n", [":5: not YAML: while parsing a flow sequence"]),
        (GOOD + "train:\n\tlr: 1\n", [":5: not YAML: while scanning"]),
        (GOOD + "a: 1\n---\nb: 1\n", [":5: not YAML: expected a single document"]),
        (GOOD + "train: !python {}\n", [":4: train: the tag !python is unknown, allowed: plain YAML"]),
        (GOOD + "a: &x {b: *x}\n", [":4: a.b: an anchor that contains itself"]),
        (GOOD + "train: &t {lr: 1}\numap:\n  <<: *t\n", [":6: umap.<<: merge keys are not supported; repeat the keys"]),
        (GOOD + "? [a, b]\n: 1\n", [":4: a key that is a list or a mapping, allowed: text"]),
        ("", [":1: the file is empty, allowed: a mapping of keys to values"]),
        ("# nothing\n", [":1: the file is empty, allowed: a mapping of keys to values"]),
        ("- a\n- b\n", [":1: found ['a', 'b'] (a list), allowed: a mapping of keys to values"]),
    ],
)
def test_every_kind_of_bad_input(text: str, expected: list[str], project: Any) -> None:
    answers = problems_of(text, project)
    assert len(answers) == len(expected)
    for answer, start in zip(answers, expected, strict=True):
        assert answer.startswith(start)
        assert "\n" not in answer


def test_problems_come_in_the_order_of_the_file(project: Any) -> None:
    text = GOOD + "umap:\n  n_neighbors: 1\ntrain:\n  lr: fast\n  lrr: 1\ndownload:\n  count: 0\n"
    assert [line.split(":")[1] for line in problems_of(text, project)] == ["5", "7", "8", "10"]


def test_all_files_are_reported_at_once(project: Any) -> None:
    project(
        config="experiments: [one, two, thre]\nset: [one.umap.n_neighbors=1]",
        one=GOOD + "train:\n  lrr: 1\n",
        two="scope: fake_scope:Plugin\nmodel:\n  name: 3\n",
        three=GOOD,
        local="data: x",
    )
    assert problems() == [
        "config/local.yaml:1: data: unknown key; did you mean 'data_path'?",
        "config/experiments/one.yaml:5: train.lrr: unknown key; did you mean 'lr'?",
        "config/config.yaml:2: set one.umap.n_neighbors: found 1, allowed: a whole number >= 2",
        "config/experiments/two.yaml:3: model.name: found 3, allowed: text; put it in quotes",
        "config/experiments/thre.yaml: there is no such experiment, known: one, three, two; did you mean 'three'?",
    ]


def test_unknown_scope_names_the_nearest(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from manyscope.registry import SCOPES

    monkeypatch.setattr(SCOPES, "paths", {"fakes": "fake_scope:Fake", "others": "fake_scope:Plugin"})
    project(one="scope: fakes\nmodel: {name: net}\n")
    assert load_experiment("one", site=Site()).scope == "fakes"
    (line,) = problems_of("# a comment\nscope: fake\n", project)
    assert line.startswith(":2: scope: scope 'fake' is unknown; allowed: fakes, others, or an import path")
    assert line.endswith("did you mean 'fakes'?")


def test_mistakes_in_plugin_defaults_name_the_plugins_file(project: Any) -> None:
    import fake_scope  # type: ignore[import-not-found]

    project(one="scope: fake_scope:BadDefaults\n")
    with pytest.raises(SettingsError) as error:
        load_experiment("one", site=Site())
    file = fake_scope.BadDefaults.default_settings
    assert error.value.problems == (f"{file}:4: train.lrr: unknown key; did you mean 'lr'?",)


def test_file_that_is_not_text(project: Any) -> None:
    folder = project()
    (folder / "config/experiments/one.yaml").write_bytes(b"scope: \xff\xfe\n")
    with pytest.raises(SettingsError, match=r"one\.yaml: cannot be read \(it is not UTF-8 text\)"):
        load_experiment("one", site=Site())


def test_experiment_by_path(project: Any) -> None:
    folder = project(one=GOOD)
    elsewhere = folder / "elsewhere.yaml"
    elsewhere.write_text(GOOD + "title: here\n")
    assert load_experiment(elsewhere, site=Site()).title == "here"
    assert load_experiment("./elsewhere.yaml", site=Site()).title == "here"
    assert known_experiments() == ["one"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("experiments: [one]\nshards: 0\n", "config/config.yaml:2: shards: found 0, allowed: a whole number > 0"),
        ("experiments: [one]\n\nshard: 2\n", "config/config.yaml:3: shard: unknown key; did you mean 'shards'?"),
        (
            "shards: 2\n",
            "config/config.yaml: experiments: missing, allowed: a list of 1 or more items, each text, or text",
        ),
        ("experiments: []\n", "config/config.yaml:1: experiments: found [] (a list), allowed: a list of 1"),
        (
            "experiments:\n- one\n- a b\n",
            "config/config.yaml:3: experiments[1]: found 'a b' (text), allowed: letters, digits, '_' and '-'",
        ),
        ("experiments: [benchmarks]\n", "config/config.yaml:1: experiments[0]: found 'benchmarks' (text), allowed: "),
        (
            "experiments: one\nset:\n- one.train.lr=no\n",
            "config/config.yaml:3: set one.train.lr: found 'no' (text), allowed: ",
        ),
        (
            "experiments: one\nset: one.train.lr=no\n",
            "config/config.yaml:2: set one.train.lr: found 'no' (text), allowed: ",
        ),
        (
            "experiments: one\nset:\n  one.train.lr: 1\n",
            "config/config.yaml:2: set: found {'one.train.lr': 1} (a mapping), allowed",
        ),
        (
            "experiments: one\nset: [one.lr]\n",
            "config/config.yaml:2: set one.lr: '=' is missing, allowed: section.key=value",
        ),
        ("experiments: one\nset: [lr=1]\n", "config/config.yaml:2: set lr: names no experiment, allowed: EXPERIMENT."),
        (
            "experiments: one\nset: [oen.train.lr=1]\n",
            "config/config.yaml:2: set oen.train.lr: no experiment 'oen', known: one, two; did you mean 'one'?",
        ),
        ("experiments: one\nsite_file: 3\n", "config/config.yaml:2: site_file: found 3, allowed: a path; put it"),
        ("experiments: [one\n", "config/config.yaml:2: not YAML: while parsing a flow sequence"),
        ("experiments: one\nexperiments: two\n", "config/config.yaml:2: experiments: the key is there twice"),
    ],
)
def test_workflow_file_is_as_strict(config: str, expected: str, project: Any) -> None:
    project(config=config, one=GOOD, two=GOOD)
    (line,) = problems()
    assert line.startswith(expected)


def test_missing_workflow_file(project: Any) -> None:
    project()
    assert problems() == ["config/config.yaml: there is no such file; run in the folder that holds config/config.yaml"]


@pytest.mark.parametrize("names", ["one two", "one, two", " two one,", ["two", "one"], ["one", "two", "one"]])
def test_names_in_any_form(names: Any, project: Any) -> None:
    project(one=GOOD, two=GOOD)
    assert set(load_config({"experiments": names}).experiments) == {"one", "two"}


def test_values_from_snakemake_win_over_the_file(project: Any) -> None:
    project(config="experiments: [one]\nshards: 2\nset: [one.train.lr=2, one.train.epochs=2]", one=GOOD)
    config = load_config({"experiments": ["one"], "shards": 4, "set": ["one.train.lr=3"]})
    assert config.shards == 4
    assert config.experiments["one"].train.lr == 3
    assert config.experiments["one"].train.epochs == 2  # the file's overrides stay under those of the command line


def test_problem_of_a_value_from_snakemake_names_the_option(project: Any) -> None:
    project(config="experiments: [one]\nshards: 2", one=GOOD)
    lines = problems({"experiments": ["one"], "shards": "two", "set": ["one.train.lr=x"], "shard": 1})
    assert lines == [
        "--config shards: found 'two' (text), allowed: a whole number > 0",
        "--config shard: unknown key; did you mean 'shards'?",
    ]
    assert problems({"experiments": ["one"], "shards": 2, "set": ["one.train.lr=x"]}) == [
        "--set one.train.lr: found 'x' (text), allowed: a number > 0"
    ]


def test_names_and_overrides_as_arguments(project: Any) -> None:
    project(config="experiments: [one]\nset: [two.train.lr=2, two.train.epochs=2]", one="", two=GOOD)
    config = load_config(experiments=["two"], overrides=["two.train.lr=4"])
    assert list(config.experiments) == ["two"]
    assert (config.experiments["two"].train.lr, config.experiments["two"].train.epochs) == (4, 2)
    assert problems(experiments=["t o"]) == [
        "--experiment: found 't o' (text), allowed: letters, digits, '_' and '-', and not 'benchmarks'"
    ]


def test_override_of_an_experiment_that_does_not_take_part_is_left_alone(project: Any) -> None:
    project(config="experiments: [one]\nset: [two.train.lr=fast]", one=GOOD, two=GOOD)
    assert list(load_config().experiments) == ["one"]


def test_experiments_that_others_start_from_are_known_and_not_asked_for(project: Any) -> None:
    project(
        config="experiments: [two]\nset: [zero.train.lr=8, two.train.epochs=3]",
        zero=GOOD, one=GOOD + "train: {start_from: zero}\n", two=GOOD + "train:\n  start_from: one\n", other="broken",
    )  # fmt: skip
    config = load_config()
    assert list(config.experiments) == ["two"]
    assert list(config.known) == ["two", "one", "zero"]
    assert config.known["two"] is config.experiments["two"]
    assert config.settings("zero").train.lr == 8
    assert config.paths("one").model == Path("results/one/train/model.ckpt")
    assert json.loads(config.stage_json("two", "train"))["train"]["start_from"] == "one"
    assert len(config.code_digest("zero", "train")) == 64
    both = load_config(experiments=["one", "two"])
    assert (list(both.experiments), list(both.known)) == (["one", "two"], ["one", "two", "zero"])
    assert list(load_config(experiments=["zero"]).known) == ["zero"]


def test_start_may_be_given_and_taken_away_by_an_override(project: Any) -> None:
    project(config="experiments: [two]", one=GOOD, two=GOOD, three=GOOD + "train: {start_from: one}\n")
    assert list(load_config(overrides=["two.train.start_from=one"]).known) == ["two", "one"]
    assert list(load_config(experiments=["three"], overrides=["three.train.start_from=null"]).known) == ["three"]
    (line,) = problems(overrides=["two.train.start_from=tree"])
    assert line.startswith("--set two.train.start_from: found 'tree' (text), there is no such experiment, known: one, ")
    assert line.endswith("; did you mean 'three'?")


def test_what_is_wrong_with_a_start_names_file_and_line(project: Any) -> None:
    start = GOOD + "train:\n  lr: 1\n  start_from: {}\n"
    project(
        config="experiments: [itself, circle, into, stranger, unknown, number, path]",
        itself=start.format("itself"),
        circle=start.format("round"),
        round=start.format("circle"),
        into=start.format("circle"),
        stranger=start.format("plugin"),
        plugin="scope: fake_scope:Plugin\n",
        unknown=start.format("stranga"),
        number=start.format("3"),
        path=start.format("../experiments/itself"),
        benchmarks=GOOD,  # which no experiment can be called
    )
    unknown = "there is no such experiment, known: circle, into, itself, number, path, plugin, round, stranger, unknown"
    outside, s = "allowed: an experiment outside of it", "'fake_scope"
    expected = {
        "itself": f"found 'itself' (text), a circle (itself starts from itself), {outside}",
        "circle": f"found 'round' (text), a circle (circle starts from round starts from circle), {outside}",
        "round": f"found 'circle' (text), a circle (round starts from circle starts from round), {outside}",
        "stranger": f"found 'plugin' (text), an experiment of scope {s}:Plugin', allowed: one of scope {s}:Fake'",
        "unknown": f"found 'stranga' (text), {unknown}; did you mean 'stranger'?",
        "number": "found 3, allowed: text or null; put it in quotes",
        "path": f"found '../experiments/itself' (text), {unknown}",
    }
    lines = [f"config/experiments/{name}.yaml:6: train.start_from: {text}" for name, text in expected.items()]
    assert sorted(problems()) == sorted(lines)


def test_problems_of_an_experiment_to_start_from_are_reported(project: Any) -> None:
    project(
        config="experiments: [two, three]",
        one=GOOD + "train:\n  lrr: 1\n",
        **dict.fromkeys(("two", "three"), GOOD + "train: {start_from: one}\n"),
    )
    assert problems() == ["config/experiments/one.yaml:5: train.lrr: unknown key; did you mean 'lr'?"]


def test_other_folders(project: Any) -> None:
    folder = project(config="experiments: [one]\nexperiments_folder: tiny\nresults: out\nsite_file: here.yaml")
    (folder / "tiny").mkdir()
    (folder / "tiny/one.yaml").write_text(GOOD)
    (folder / "here.yaml").write_text("data_path: /big\n")
    config = load_config(directory=folder)
    assert config.site.data_path == Path("/big")
    assert config.paths("one").model == Path("out/one/train/model.ckpt")
    assert str(config.paths("{experiment}").model) == "out/{experiment}/train/model.ckpt"


@pytest.fixture
def config(project: Any) -> Config:
    project(config="experiments: [one, two]", one=GOOD, two=GOOD + "train:\n  lr: 3e-4\n")
    return load_config()


def test_unknown_experiment_names_the_known(config: Config) -> None:
    for ask in (config.paths, config.settings, lambda name: config.stage_json(name, "train")):
        with pytest.raises(
            ManyscopeError, match=r"experiment 'tow' is unknown; allowed: one, two; did you mean 'two'\?"
        ):
            ask("tow")


def test_stage_json_holds_only_what_the_stage_reads(config: Config) -> None:
    text = config.stage_json("two", "train")
    assert "\n" not in text
    assert ": " not in text
    values = json.loads(text)
    assert values == config.experiments["two"].stage_values("train")
    assert list(values) == sorted(values) == ["model", "scope", "train"]
    assert config.stage_json("one", "umap") == config.stage_json("two", "umap")
    assert config.stage_json("one", "train") != text


def test_stage_settings_are_the_inverse_of_stage_json(config: Config) -> None:
    model = scope_settings("fake_scope:Fake")
    for stage in model.reads:
        back = stage_settings(model, stage, json.loads(config.stage_json("two", stage)))
        assert back.stage_values(stage) == config.experiments["two"].stage_values(stage)


def test_stage_settings_are_checked_again(config: Config) -> None:
    values = json.loads(config.stage_json("one", "train"))
    values["train"]["lr"] = "fast"
    values["model"]["nam"] = 1
    values["umap"] = {}
    with pytest.raises(SettingsError) as error:
        stage_settings(scope_settings("fake_scope:Fake"), "train", values)
    assert error.value.problems == (
        "--settings: model.nam: unknown key; did you mean 'name'?",
        "--settings: train.lr: found 'fast' (text), allowed: a number > 0",
        "--settings: umap: stage 'train' does not read it, allowed: model, train",
    )


def test_code_digest_follows_the_import_paths_that_the_stage_reads(config: Config, project: Any) -> None:
    folder = project(
        config="experiments: [one, own]", own="scope: fake_scope:Fake\nmodel: {name: 'digested_net:Net'}\n"
    )
    (folder / "digested_net.py").write_text("class Net: pass\n")
    sys.path.insert(0, str(folder))
    try:
        config = load_config()
        digests = {
            (name, stage): config.code_digest(name, stage) for name in ("one", "own") for stage in ("train", "umap")
        }
    finally:
        sys.path.remove(str(folder))
    assert digests["one", "train"] != digests["own", "train"]
    assert digests["one", "umap"] == digests["own", "umap"]
    (folder / "digested_net.py").write_text("class Net: x = 1\n")
    assert config.code_digest("own", "train") == digests["own", "train"]  # one process runs one version of the code
    assert config.summary_digest() not in digests.values()


def test_plugin_defaults_that_are_missing(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fake_scope

    monkeypatch.setattr(fake_scope.Plugin, "default_settings", Path("absent.yaml"))
    (line,) = problems_of("scope: fake_scope:Plugin\n", project)
    assert line == "absent.yaml: cannot be read (No such file or directory)"


values_ = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), values_, max_size=3)


@given(st.lists(mappings, min_size=1, max_size=4))
def test_merging_step_by_step_is_merging_at_once(layers: list[dict[str, Any]]) -> None:
    by_steps = Layer({})
    for values in layers:
        by_steps = merged([by_steps, Layer(values)])
    assert merged(map(Layer, layers)).values == by_steps.values


# Mappings under a, b and leaves under x, y: as in settings, a key is a section in every layer or in none.
shaped = st.recursive(
    st.dictionaries(st.sampled_from("xy"), st.integers(), max_size=2),
    lambda inner: st.builds(
        lambda leaves, sections: leaves | sections,
        st.dictionaries(st.sampled_from("xy"), st.integers(), max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    ),
    max_leaves=6,
)


@given(shaped, shaped, shaped)
def test_merging_is_associative(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> None:
    left = merged([merged([Layer(one), Layer(two)]), Layer(three)])
    right = merged([Layer(one), merged([Layer(two), Layer(three)])])
    assert left.values == right.values


@given(mappings)
def test_merging_changes_none_of_its_layers(values: dict[str, Any]) -> None:
    before = json.dumps(values)
    result = merged([Layer(values), Layer({"a": {"b": 1}})])
    assert json.dumps(values) == before
    assert result.values["a"]["b"] == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("on", "on"), ("~", None), ("0o17", 15), ("+1", 1), (".5", 0.5), ("1_000", "1_000"), ("1e", "1e")],
)
def test_plain_values(text: str, value: Any) -> None:
    found = plain_value(text)
    assert found == value
    assert type(found) is type(value)


def test_importing_settings_is_light() -> None:
    heavy = ["torch", "numpy", "polars", "pyarrow", "sklearn", "matplotlib", "snakemake"]
    code = f"import sys, manyscope.settings, manyscope.settings.schema; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
