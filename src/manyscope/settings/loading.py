"""Reading the workflow file, the site file and the experiments; every problem is reported at once, with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, create_model

from manyscope.errors import ManyscopeError, SettingsError, did_you_mean
from manyscope.registry import SCOPES
from manyscope.settings.code import code_digest, module_digest
from manyscope.settings.explain import validated
from manyscope.settings.overrides import by_experiment, parse_override, split_overrides
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, Section
from manyscope.settings.site import SITE_FILE, Site, load_site
from manyscope.settings.source import Key, Layer, Place, filled, found, leaves, merged, read_layer

CONFIG_FILE = Path("config/config.yaml")
EXPERIMENTS_FOLDER = Path("config/experiments")

# An experiment's name is a folder, a Snakemake wildcard, and the first part of an override.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = ("benchmarks",)  # results/benchmarks is not an experiment
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class WorkflowSettings(Section):
    """The keys of `config/config.yaml`."""

    experiments: Annotated[tuple[str, ...], Field(min_length=1)] | str = Field(
        description="Which experiments to run: a list, or one text with blanks or commas between the names."
    )
    shards: PositiveInt = Field(1, description="Slices of the samples that are inferred in parallel.")
    results: Path = Field(Path("results"), description="Folder of everything that a run makes.")
    experiments_folder: Path = Field(EXPERIMENTS_FOLDER, description="Folder of the experiment files.")
    site_file: Path = Field(SITE_FILE, description="File of this computer's paths; need not exist.")
    overrides: tuple[str, ...] | str = Field(
        (), alias="set", description="Settings over those of the files: EXPERIMENT.section.key=value."
    )


@dataclass(frozen=True)
class Config:
    """A whole workflow, checked and resolved.

    Attributes:
        experiments: name -> settings, in the order in which they were named.
        known: these, and the experiments whose trained weights they start from.
        shards: slices for parallel inference.
        results: folder of all experiments' files.
    """

    experiments: dict[str, ExperimentSettings]
    known: dict[str, ExperimentSettings]
    shards: int
    results: Path
    site: Site
    _digests: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def settings(self, experiment: str) -> ExperimentSettings:
        """
        Raises:
            ManyscopeError: no experiment of that name takes part.
        """
        if experiment not in self.known:
            known = list(self.known)
            raise ManyscopeError(
                f"experiment {experiment!r} is unknown",
                allowed=", ".join(known),
                remedy=did_you_mean(experiment, known) or f"add it to experiments in {CONFIG_FILE}",
            )
        return self.known[experiment]

    def paths(self, experiment: str) -> ExperimentPaths:
        """The files of one experiment; `{experiment}` itself, in braces, gives the patterns of the rules.

        Raises:
            ManyscopeError: no experiment of that name takes part.
        """
        if experiment != "{experiment}":
            self.settings(experiment)
        return ExperimentPaths.of(self.results, experiment)

    def stage_json(self, experiment: str, stage: str) -> str:
        """What one stage reads, as one line of JSON that is the same for the same settings."""
        values = self.settings(experiment).stage_values(stage)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def summary_digest(self) -> str:
        """SHA-256 of the source that writes the summary of all experiments."""
        return module_digest("manyscope.evaluation.summary")

    def code_digest(self, experiment: str, stage: str) -> str:
        """SHA-256 of the source that the stage runs for this experiment."""
        if (experiment, stage) not in self._digests:
            self._digests[experiment, stage] = stage_code_digest(self.settings(experiment), stage)
        return self._digests[experiment, stage]


def results_folder(file: Path = CONFIG_FILE) -> Path:
    """The results folder of a workflow file, without a look at its experiments; the default where there is no file.

    Raises:
        SettingsError: the file cannot be read, or its `results` holds a placeholder without a value.
    """
    if not file.exists():
        return Path("results")
    layer = read_layer(file)
    site_file = _site_file(layer)
    own = Layer({"results": layer.values.get("results", "results")}, layer.places)
    own, problems = filled(own, load_site(site_file).placeholders(), str(site_file))
    if problems:
        raise SettingsError(*problems)
    return Path(str(own.values["results"]))


def stage_code_digest(settings: ExperimentSettings, stage: str) -> str:
    """SHA-256 of the source that a stage runs with these settings: of its own modules, of the scope's methods that it
    calls, and of what the settings name by import path or by a name of a plug-in package."""
    texts = {value for _, value in leaves(settings.stage_values(stage)) if isinstance(value, str)}
    plugins = _plugin_paths()
    paths = [text for text in texts if _IMPORT_PATH.fullmatch(text)]
    paths += [path for text in texts for path in plugins.get(text, ())]
    return code_digest(stage, SCOPES.path(settings.scope), sorted(paths))


@cache
def _plugin_paths() -> dict[str, list[str]]:
    """Names that installed packages add to a registry -> their import paths, but for scopes, which are followed."""
    found: dict[str, list[str]] = {}
    points = entry_points()
    for group in points.groups:
        if group.startswith("manyscope.") and group != "manyscope.scopes":
            for point in points.select(group=group):
                found.setdefault(point.name, []).append(point.value)
    return found


def load_config(
    config: Mapping[str, Any] | None = None,
    directory: Path = Path(),
    *,
    config_file: Path = CONFIG_FILE,
    experiments: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Everything that the workflow needs to know, from the files under `directory`.

    Args:
        config: the values that Snakemake has merged from its configuration files and `--config`; None reads
            `config_file`.
        experiments: names that take the place of those in the file.
        overrides: `EXPERIMENT.section.key=value`, applied after those of the file.

    Raises:
        SettingsError: holds every problem of every file, one line each with file and line.
    """
    layer, texts, problems = _workflow_layer(config, directory / config_file)
    if experiments is not None:
        keys: list[Key] = [("experiments", position) for position in range(len(experiments))]
        places = {key: Place("--experiment", key=key) for key in keys}
        layer = merged([layer, Layer({"experiments": list(experiments)}, places)])
    site_file = directory / _site_file(layer)
    site = Site()
    try:
        site = load_site(site_file)
    except SettingsError as error:
        problems += error.problems
    layer, wrong = filled(layer, site.placeholders(), str(site_file))
    problems += wrong
    workflow, wrong = validated(WorkflowSettings, layer)
    problems += wrong
    if workflow is None:
        raise SettingsError(*problems)

    names, wrong = _experiment_names(workflow.experiments, layer)
    problems += wrong
    given, wrong = by_experiment([*texts, *((text, None) for text in overrides)])
    problems += wrong
    folder = directory / workflow.experiments_folder
    problems += _strangers(given, sorted({*names, *known_experiments(folder)}))
    files = [name for name in known_experiments(folder) if _can_be_name(name)]
    loaded: dict[str, tuple[ExperimentSettings, Layer]] = {}
    wanted = list(names)
    for name in wanted:  # grows by the experiments that these start from
        try:
            loaded[name] = _load(folder / f"{name}.yaml", folder, given.get(name, []), site, site_file)
        except SettingsError as error:
            problems += error.problems
            continue
        start = loaded[name][0].train.start_from
        if start in files and start not in wanted:
            wanted.append(start)
    problems += _start_problems(loaded, files)
    if problems:
        raise SettingsError(*dict.fromkeys(problems))
    known = {name: settings for name, (settings, _) in loaded.items()}
    return Config({name: known[name] for name in names}, known, workflow.shards, workflow.results, site)


def load_experiment(
    name_or_path: str | Path,
    folder: Path = EXPERIMENTS_FOLDER,
    overrides: Sequence[str | Layer] = (),
    site: Site | None = None,
) -> ExperimentSettings:
    """One experiment: the scope's defaults, under its default_settings, under the file, under the overrides.

    Args:
        name_or_path: `galaxies`, for the file of that name in `folder`, or the path of a YAML file.
        overrides: `section.key=value`; a later one wins.
        site: None reads `config/local.yaml` where it exists.

    Raises:
        SettingsError: holds every problem that was found, one line each.
    """
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text
    file = Path(text) if is_path else folder / f"{text}.yaml"
    layers: list[Layer] = []
    problems: list[str] = []
    for override in overrides:
        try:
            layers.append(parse_override(override) if isinstance(override, str) else override)
        except SettingsError as error:
            problems += error.problems
    try:
        settings, _ = _load(file, folder, layers, load_site() if site is None else site, SITE_FILE)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(*problems)
    return settings


def known_experiments(folder: Path = EXPERIMENTS_FOLDER) -> list[str]:
    """The names of the experiment files in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def scope_settings(scope: str) -> type[ExperimentSettings]:
    """The settings model of a scope.

    Raises:
        ManyscopeError: the scope is unknown, cannot be imported, or has no such model.
    """
    settings = getattr(SCOPES.find(scope), "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, ExperimentSettings)):
        raise ManyscopeError(
            f"scope {scope!r} has no settings model",
            allowed="a class with an attribute Settings, derived from ExperimentSettings",
        )
    return settings


def scope_defaults(scope: str) -> Layer | None:
    """The plug-in's default settings, or None where the scope brings none.

    Raises:
        SettingsError: the file cannot be read.
    """
    path = getattr(SCOPES.find(scope), "default_settings", None)
    return None if path is None else read_layer(Path(path))


def stage_settings(model: type[ExperimentSettings], stage: str, values: Mapping[str, Any]) -> ExperimentSettings:
    """The settings of one stage from what `Config.stage_json` wrote, checked again since a shell may have held them.

    Raises:
        SettingsError: a section or key is wrong; holds every problem.
    """
    sections = model.reads[stage]
    unread = values.keys() - {"scope", *sections}
    allowed = ", ".join(sections)
    problems = [f"--settings: {name}: stage {stage!r} does not read it, allowed: {allowed}" for name in unread]
    for name in sections:
        info = model.model_fields[name]
        wrapper = create_model(f"Stage{name.title()}", __base__=Section, **{name: (info.annotation, info)})  # type: ignore[call-overload]
        given = {name: values[name]} if name in values else {}
        problems += validated(wrapper, Layer(given, {(): Place("--settings")}))[1]
    if problems:
        raise SettingsError(*sorted(problems))
    return model.from_stage_values(stage, dict(values))


def _load(
    file: Path, folder: Path, overrides: Iterable[Layer], site: Site, site_file: Path
) -> tuple[ExperimentSettings, Layer]:
    """The settings, and what was written of them with its places."""
    if not file.is_file():
        known = known_experiments(folder)
        listed = ", ".join(known) or f"none in {folder}"
        hint = did_you_mean(file.stem, known)
        raise SettingsError(f"{file}: there is no such experiment, known: {listed}" + (f"; {hint}" if hint else ""))
    own = read_layer(file)
    layers, problems = [], []
    for layer in (own, *overrides):
        layer, wrong = filled(layer, site.placeholders(), str(site_file))
        layers.append(layer)
        problems += wrong
    own = layers[0]
    scope = merged(layers).values.get("scope")
    if not isinstance(scope, str):
        text = "missing" if "scope" not in own.values else f"found {found(scope)}"
        raise SettingsError(*problems, own.problem(("scope",), f"{text}, allowed: {', '.join(SCOPES.names())}"))
    try:
        model = scope_settings(scope)
    except ManyscopeError as error:
        raise SettingsError(*problems, merged(layers).problem(("scope",), str(error))) from error
    try:
        defaults = scope_defaults(scope)
    except SettingsError as error:
        raise SettingsError(*problems, *error.problems) from error
    if defaults is not None:
        defaults, wrong = filled(defaults, site.placeholders(), str(site_file))
        problems += wrong
        layers = [defaults, *layers]
    for layer in layers:
        _drop_empty_sections(layer.values, model)
    final = merged(layers)
    final.places[()] = own.places[()]
    if problems:  # a placeholder without a value would only be reported a second time
        known_places = {problem.split(": ")[0] for problem in problems}
        _, wrong = validated(model, final)
        raise SettingsError(*problems, *(p for p in wrong if p.split(": ")[0] not in known_places))
    settings, problems = validated(model, final)
    if problems:
        raise SettingsError(*problems)
    return settings, final


def _start_problems(loaded: Mapping[str, tuple[ExperimentSettings, Layer]], files: list[str]) -> Iterator[str]:
    """What is wrong with the experiments from which others start."""
    starts = {name: settings.train.start_from for name, (settings, _) in loaded.items()}
    for name, start in starts.items():
        if start is None:
            continue
        chain = [name]
        while (following := starts.get(chain[-1])) and following not in chain:
            chain.append(following)
        scope = loaded[name][0].scope
        if start not in files:
            hint = did_you_mean(start, files)
            text = f"there is no such experiment, known: {', '.join(files)}" + (f"; {hint}" if hint else "")
        elif following == name:
            text = f"a circle ({' starts from '.join([*chain, name])}), allowed: an experiment outside of it"
        elif start in loaded and loaded[start][0].scope != scope:
            text = f"an experiment of scope {loaded[start][0].scope!r}, allowed: one of scope {scope!r}"
        else:
            continue
        yield loaded[name][1].problem(("train", "start_from"), f"found {found(start)}, {text}")


def _drop_empty_sections(values: dict[str, Any], model: type[Section]) -> None:
    """`train:` with nothing under it, such as with every line commented out, sets nothing."""
    for name, info in model.model_fields.items():
        section = info.annotation
        if not (isinstance(section, type) and issubclass(section, Section)) or name not in values:
            continue
        if values[name] is None:
            del values[name]
        elif isinstance(values[name], dict):
            _drop_empty_sections(values[name], section)


def _workflow_layer(
    config: Mapping[str, Any] | None, file: Path
) -> tuple[Layer, list[tuple[str, Place | None]], list[str]]:
    """The workflow's values without the overrides, the overrides with their places, and what is wrong with these.

    Snakemake's `--config set=…` would hide the overrides of the file; here they come after them, as on the
    command line.
    """
    if config is None and not file.is_file():
        raise SettingsError(f"{file}: there is no such file; run in the folder that holds {CONFIG_FILE}")
    written = read_layer(file) if file.is_file() else Layer({})
    values = dict(written.values if config is None else config)
    layer = Layer({}, {(): written.places.get((), Place("--config"))})
    for key, value in values.items():
        if key in written.values and written.values[key] == value:
            layer.places |= {path: place for path, place in written.places.items() if path[:1] == (key,)}
        else:
            layer.places[key,] = Place(f"--config {key}", key=(key,))
        layer.values[key] = value

    texts: list[tuple[str, Place | None]] = []
    problems = []
    given = layer.values.pop("set", None)
    for source, overrides in ((written, written.values.get("set")), (layer, given)):
        if source is layer and overrides == written.values.get("set"):
            continue
        try:
            for position, text in enumerate(split_overrides(overrides)):
                place = source.place(("set", position)) if source is written else None
                texts.append((text, place))
        except SettingsError as error:
            problems += [layer.problem(("set",), problem) for problem in error.problems]
    return layer, texts, problems


def _site_file(layer: Layer) -> Path:
    """The site file can depend on the environment, not on the site; what is wrong here is reported with the rest."""
    value = layer.values.get("site_file", str(SITE_FILE))
    one, wrong = filled(Layer({"site_file": value}), {}, "")
    found_value = one.values["site_file"]
    return Path(found_value) if isinstance(found_value, str) and not wrong else SITE_FILE


def _strangers(given: Mapping[str, Sequence[Layer]], known: list[str]) -> list[str]:
    """Overrides of experiments that do not exist; those of experiments that do not take part are left alone."""
    problems = []
    for name in given.keys() - set(known):
        hint = did_you_mean(name, known)
        for override in given[name]:
            place = next(place for path, place in override.places.items() if path)
            text = f"no experiment {name!r}, known: {', '.join(known)}" + (f"; {hint}" if hint else "")
            problems.append(f"{place.source}: {text}")
    return sorted(problems)


def _can_be_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name not in _RESERVED


def _experiment_names(given: Sequence[str] | str, layer: Layer) -> tuple[list[str], list[str]]:
    """The names that can be used, each once, and what is wrong with the others."""
    names = re.split(r"[\s,]+", given.strip(" \t\n,")) if isinstance(given, str) else list(given)
    good, problems = [], []
    for position, name in enumerate(names):
        if _can_be_name(name):
            good.append(name)
            continue
        place = ("experiments",) if isinstance(given, str) else ("experiments", position)
        allowed = f"letters, digits, '_' and '-', and not {_RESERVED[0]!r}"
        problems.append(layer.problem(place, f"found {found(name)}, allowed: {allowed}"))
    return list(dict.fromkeys(good)), problems
