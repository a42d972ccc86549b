"""The command line: `manyscope STAGE --experiment NAME` and the commands around the chain."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from manyscope import __version__
from manyscope.errors import ManyscopeError, StoppedError

if TYPE_CHECKING:
    from manyscope.settings import Config

_GRACE_S = 120.0

STAGE_HELP = {
    "download": "Fetch, copy or simulate the raw data.",
    "preprocess": "Validate and convert once; deal samples to train, validation and test.",
    "train": "Fit the model; continues from its last checkpoint.",
    "infer": "Apply the trained model to one shard of the samples.",
    "gather": "Join the shards into one latent table and add outlier scores.",
    "umap": "Map the latent vectors to two or three dimensions.",
    "index": "Build the vector index and audit it against exact search.",
    "evaluate": "Judge the model beside its baselines on held-out data.",
    "explore": "Serve the page of the map, live, to a browser; with --experiment, write it as one file.",
}


class _Cli(click.Group):
    """Turns errors that a user can mend into one line and an exit code; a traceback only with --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.get("debug", False)
        try:
            return super().invoke(ctx)
        except ManyscopeError as error:
            if debug:
                traceback.print_exc()
            for line in str(error).splitlines():
                click.secho(f"error: {line}", err=True, fg="red" if sys.stderr.isatty() else None)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; the same command continues", err=True)
            ctx.exit(130)
        except Exception as error:
            if debug:
                traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            click.secho(f"error: {reason}; run again with --debug for a traceback", err=True)
            ctx.exit(70)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from manyscope.errors import did_you_mean

            hint = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"{error.message.rstrip('.')}. {hint}", ctx) from error


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="manyscope")
@click.option("--debug", is_flag=True, help="Show debug lines, and a traceback when something fails.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """One chain from raw instrument data to a model, a map, a searchable index and an honest score.

    download -> preprocess -> train -> infer -> gather -> umap -> index -> evaluate -> explore
    """
    from manyscope.log import configure

    configure(debug)
    ctx.obj = debug


_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("config/config.yaml"),
    show_default=True,
    help="The workflow file.",
)
_set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
_results_option = click.option("--results", type=click.Path(path_type=Path), help="Folder of all experiments' results.")
_settings_option = click.option(
    "--settings", metavar="JSON|FILE", help="The stage's resolved settings, instead of config files."
)
_experiment_option = click.option("--experiment", required=True, help="Name of a file in config/experiments.")


def _config(config_file: Path, experiments: list[str] | None = None, overrides: tuple[str, ...] = ()) -> Config:
    from manyscope.settings import load_config

    return load_config(config_file=config_file, experiments=experiments, overrides=overrides)


def _run_stage(
    stage: str, experiment: str, settings: str | None, results: Path | None, config_file: Path,
    overrides: tuple[str, ...], **where: int,
) -> None:  # fmt: skip
    """Resolve the settings, as data when they were given as data, and run the stage alone in its place."""
    from manyscope.log import logger
    from manyscope.settings.paths import ExperimentPaths
    from manyscope.tables.whole import explaining_full_disk, sole_worker
    from manyscope.training.launch import is_first_process

    _choose_threads()
    if settings is not None and overrides:
        raise ManyscopeError("--set changes config files", place="--settings", allowed="one of the two")
    if settings is None:
        config = _config(config_file, [experiment], tuple(f"{experiment}.{text}" for text in overrides))
        os.environ.update(config.site.environment())
        own = config.experiments[experiment].for_stage(stage)
        paths = ExperimentPaths.of(results or config.results, experiment)
    else:
        own = _stage_settings(stage, settings)
        paths = ExperimentPaths.of(results or Path("results"), experiment)
    run = importlib.import_module(f"manyscope.stages.{stage}").run
    if not is_first_process():
        logger.setLevel(max(logger.level, logging.WARNING))  # the first process says it for all
        # The first process ends with the code of a stopped one; srun would kill it if another did so before.
        with suppress(StoppedError):
            run(own, paths, **where)
        return
    # On a cluster the job before this one may still have its grace to write a checkpoint.
    patience_s = _GRACE_S if "SLURM_JOB_ID" in os.environ else 0
    with explaining_full_disk(paths.root), sole_worker(paths.lock(stage, where.get("shard", 0)), patience_s):
        run(own, paths, **where)


def _choose_threads() -> None:
    # Threads that spin while they wait for each other multiply the CPU time on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        os.environ.setdefault("RAYON_NUM_THREADS", threads)  # of Chroma, which would take every core that it sees


def _stage_settings(stage: str, text: str) -> Any:
    from manyscope.settings import scope_settings, stage_settings

    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ManyscopeError(
                "cannot be read", place=text, allowed="a JSON object, or a file that holds one"
            ) from error
    try:
        values = json.loads(text)
        scope = values["scope"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ManyscopeError(
            f"not the settings of a stage ({error})", place="--settings", allowed="a JSON object with 'scope'"
        ) from error
    return stage_settings(scope_settings(scope), stage, values)


def _stage_command(stage: str) -> click.Command:
    @click.pass_context
    def command(ctx: click.Context, **options: Any) -> None:
        _run_stage(stage, **options)

    for option in (
        _set_option,
        _config_option,
        _results_option,
        _settings_option,
        _experiment_option,
    ):
        command = option(command)
    if stage == "infer":
        command = click.option("--shard", type=click.IntRange(0), default=0, help="Which shard, from 0.")(command)
    if stage in ("infer", "gather"):
        command = click.option("--shards", type=click.IntRange(1), default=1, help="How many shards.")(command)
    return click.command(stage, help=STAGE_HELP[stage])(command)


for _stage in STAGE_HELP:
    if _stage != "explore":
        main.add_command(_stage_command(_stage))


_OF_STAGE, _OF_SERVER = ("settings", "overrides"), ("port", "host", "points", "open_browser")


@main.command(help=STAGE_HELP["explore"])
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Where to serve; a free port unless given.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve at: this machine alone.")
@click.option("--points", type=click.IntRange(1), help="At most so many objects are drawn at once.")
@click.option("--open/--no-open", "open_browser", default=False, help="Open the page in a browser.")
@click.option("--experiment", help="Write the page of this experiment to explore/index.html instead, and end.")
@_results_option
@_config_option
@_settings_option
@_set_option
@click.pass_context
def explore(ctx: click.Context, names: tuple[str, ...], experiment: str | None, **options: Any) -> None:
    given = {name for name in options if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    if experiment is None:
        if unread := given.intersection(_OF_STAGE):
            raise click.UsageError(f"{_flag(unread)} is for writing the page: give --experiment too")
        from manyscope.commands.explore import serve

        serve(names, **{key: options[key] for key in (*_OF_SERVER, "results", "config_file")})
        return
    if names:
        raise click.UsageError(f"--experiment {experiment} writes a page, {' '.join(names)} would be served: give one")
    if unread := given.intersection(_OF_SERVER):
        raise click.UsageError(f"{_flag(unread)} is for serving: leave out --experiment")
    _run_stage("explore", experiment, **{key: options[key] for key in (*_OF_STAGE, "results", "config_file")})


def _flag(names: set[str]) -> str:
    return "--" + {"overrides": "set", "open_browser": "open"}.get(name := min(names), name)


@main.command()
@click.argument("experiments", nargs=-1)
@click.option("--profile", default="workflow_profiles/local", show_default=True, help="Where jobs run.")
@click.option("--cores", type=click.IntRange(1), help="Cores of this machine; all of them unless given.")
@click.option("--set", "overrides", multiple=True, metavar="EXPERIMENT.KEY=VALUE", help="Override a setting.")
@_config_option
@_results_option
@click.option(
    "--until", type=click.Choice(list(STAGE_HELP)), help="Only this stage, and those before it; without the report."
)
@click.option("--report/--no-report", default=True, help="Write results/report.html at the end.")
@click.option("--snakemake", multiple=True, metavar="ARGUMENT", help="Passed on, such as --snakemake=--dry-run.")
def run(**options: Any) -> None:
    """Run the whole chain with Snakemake for the EXPERIMENTS (all of the workflow file unless given)."""
    from manyscope.commands.run import run_workflow

    sys.exit(run_workflow(**options))


@main.command()
@_experiment_option
@_set_option
@_results_option
@_config_option
def extend(**options: Any) -> None:
    """Take in objects that are new in the data source: the weights, and the old objects, stay as they are."""
    from manyscope.commands.extend import extend as grow

    _choose_threads()
    grow(**options)


@main.command()
@click.argument("experiments", nargs=-1)
@_config_option
@click.option("--set", "overrides", multiple=True, metavar="EXPERIMENT.KEY=VALUE", help="Override a setting.")
def validate(experiments: tuple[str, ...], config_file: Path, overrides: tuple[str, ...]) -> None:
    """Check settings, and the data that is already there, before any hour is spent."""
    from manyscope.commands.validate import validate as check

    config = _config(config_file, list(experiments) or None, overrides)
    problems = [problem for name in config.known for problem in check(config, name)]
    if problems:
        from manyscope.errors import SettingsError

        raise SettingsError(*problems)
    click.echo(f"{len(config.known)} experiment(s) valid: {', '.join(config.known)}")


@main.command()
@_experiment_option
@click.option("--id", "object_id", multiple=True, help="Neighbours of this object; may be given several times.")
@click.option("--vector", type=click.Path(path_type=Path), help="A .npy file with a vector, or a table of them.")
@click.option("--image", type=click.Path(path_type=Path), help="An image, where the scope can embed one.")
@click.option("--text", help="A text, where the scope can embed one.")
@click.option("-k", "--neighbours", "k", type=int, default=10, show_default=True, help="How many neighbours.")
@click.option(
    "--where",
    multiple=True,
    metavar="FILTER",
    help="Only objects that pass: 'class = spiral', \"snr > 20 and z <= 1\".",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@_results_option
@_config_option
def search(**options: Any) -> None:
    """Find the objects nearest to one, in the latent space."""
    from manyscope.commands.search import search as find

    click.echo(find(**options))


@main.command()
@_experiment_option
@click.option(
    "--output", type=click.Path(path_type=Path), help="A file .onnx; in results/EXPERIMENT/export unless given."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=1e-4,
    show_default=True,
    help="Largest difference from torch, in units of an output's root mean square.",
)
@click.option("--opset", type=click.IntRange(18), default=18, show_default=True, help="Version of ONNX's operators.")
@_set_option
@_results_option
@_config_option
def export(**options: Any) -> None:
    """Write the trained model as an ONNX file, checked against torch on prepared samples."""
    from manyscope.commands.export import export as write

    click.echo(write(**options))


@main.command()
@click.argument("object_ids", nargs=-1, required=True, metavar="OBJECT_ID...")
@_experiment_option
@_results_option
@_config_option
def lookup(**options: Any) -> None:
    """Print all that is known of objects, with their latent vectors: a line of JSON each."""
    from manyscope.commands.objects import lookup as look_up

    click.echo(look_up(**options))


@main.command()
@_experiment_option
@click.option("-n", "n", type=click.IntRange(1), default=20, show_default=True, help="How many are printed.")
@click.option("--csv", type=click.Path(path_type=Path), help="Also write the ranking of all objects to this file.")
@_results_option
@_config_option
def outliers(**options: Any) -> None:
    """Print the strangest objects, by the mean rank of their outlier scores."""
    from manyscope.commands.objects import outliers as strangest

    click.echo(strangest(**options))


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_experiment_option
@click.option("--id-column", help="Column of FILE with the ids; object_id unless given, or what --by says.")
@click.option(
    "--by",
    "key",
    type=click.Choice(["object_id", "sample_id"]),
    default="object_id",
    show_default=True,
    help="What they are ids of.",
)
@click.option("--name", help="Name of the annotation; that of FILE unless given.")
@click.option("--columns", multiple=True, metavar="COLUMN", help="A column to be joined, again for more; or all.")
@click.option("--format", "named", help="Format of FILE in astropy's words, or parquet or csv, if its name is silent.")
@click.option("--remove", metavar="NAME", help="Remove an annotation instead.")
@click.option("--list", "listed", is_flag=True, help="List the annotations instead.")
@_results_option
@_config_option
def annotate(**options: Any) -> None:
    """Join the columns of a table FILE (CSV, Parquet, FITS, VOTable, …) to the objects, after the training: for
    colours, filters and searches."""
    from manyscope.commands.annotate import annotate as join

    click.echo(join(**options))


@main.command()
@_experiment_option
@click.argument("edits", nargs=-1, metavar='["do: …, object: …"]…')
@click.option("--file", type=click.Path(path_type=Path), help="A YAML file with a list `edits` instead.")
@click.option("--name", default="edit", show_default=True, help="Folder below results/EXPERIMENT/edits.")
@_results_option
@_config_option
def edit(**options: Any) -> None:
    """Show what was trained, changed, where the scope can: "do: remove, object: object-1"."""
    from manyscope.commands.edit import edit as carry_out

    for path in carry_out(**options):
        click.echo(path)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_experiment_option
@click.option(
    "--output", type=click.Path(path_type=Path), help="Name of the picture; FILE-EXPERIMENT.png unless given."
)
@_set_option
@_config_option
def show(**options: Any) -> None:
    """Draw what an experiment makes of one raw FILE, where the scope can: the views of a panorama."""
    from manyscope.commands.show import show as draw

    click.echo(draw(**options))


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option("--titles", default="{}", help="JSON with the titles of experiments, for the page.")
@click.argument("experiments", nargs=-1, required=True)
def summary(results: Path, titles: str, experiments: tuple[str, ...]) -> None:
    """Write the page and the table of all experiments' metrics, and print the table."""
    from manyscope.evaluation.summary import print_summary, write_summary

    try:
        named = dict(json.loads(titles))
    except (ValueError, TypeError) as error:
        raise ManyscopeError(f"not titles ({error})", place="--titles", allowed="a JSON object") from error
    write_summary(results, list(experiments), named)
    print_summary(results)


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("config/schema"), show_default=True)
@click.option("--reference", type=click.Path(path_type=Path), help="Also write the settings reference to this page.")
@click.option("--check", is_flag=True, help="Only say whether the files are up to date.")
def schema(folder: Path, reference: Path | None, check: bool) -> None:
    """Write the JSON Schemas of all settings, for editors."""
    from manyscope.settings.schema import write_schemas

    write_schemas(folder, reference, check)


@main.command()
@_config_option
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    default=Path("workflow_profiles/slurm"),
    show_default=True,
    help="Folder of the SLURM profile that is compared with the cluster.",
)
@click.option("--compute-node", is_flag=True, help="Also run a short job in each partition of the profile.")
def doctor(config_file: Path, profile: Path, compute_node: bool) -> None:
    """Say what this machine and its cluster have for the work, and what is missing."""
    from manyscope.commands.doctor import examine

    sys.exit(examine(config_file, profile, compute_node))


@main.group()
def new() -> None:
    """Write a scaffold to start from."""


@new.command("experiment")
@click.argument("name")
@click.option("--scope", required=True, help="The scope of the experiment.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("config/experiments"), show_default=True)
def new_experiment(name: str, scope: str, folder: Path) -> None:
    """Write an experiment file with every setting at its default, as comments."""
    from manyscope.commands.scaffold import write_experiment

    click.echo(f"wrote {write_experiment(name, scope, folder)}")


@new.command("scope")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(), help="Where the package is written.")
def new_scope(name: str, folder: Path) -> None:
    """Write a package with a scope of its own, whose tests pass."""
    from manyscope.commands.scaffold import write_scope

    click.echo(f"wrote {write_scope(name, folder)}")


if __name__ == "__main__":
    main()
