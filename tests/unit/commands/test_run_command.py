"""`manyscope run`: what Snakemake is asked for, and what is left behind. Snakemake itself is faked."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from manyscope.commands import run as run_command
from manyscope.commands.run import run_workflow
from manyscope.errors import BusyError, ManyscopeError, SettingsError
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.freshness import newer_source
from manyscope.tables.whole import sole_worker

REPOSITORY = Path(__file__).resolve().parents[3]
PID = 4194305  # larger than any process id of Linux
NOTE = Path(".snakemake/manyscope-run.json")


class FakeSnakemake:
    """Takes the place of the module's `subprocess`.

    Attributes:
        started: the commands of Snakemake, after `python -m snakemake`.
        unlocked: those that were run to unlock the folder.
        codes: exit codes to come; 0 when there are none.
        meanwhile: called while Snakemake runs.
    """

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.unlocked: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.codes: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.pid = PID

    def Popen(self, command: Sequence[str], env: dict[str, str]) -> FakeSnakemake:  # noqa: N802
        assert list(command[:3]) == [sys.executable, "-m", "snakemake"]
        self.started.append(list(command[3:]))
        self.environments.append(env)
        return self

    def wait(self) -> int:
        self.meanwhile()
        return self.codes.pop(0) if self.codes else 0

    def run(self, command: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        self.unlocked.append(list(command[3:]))
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def snakemake(monkeypatch: pytest.MonkeyPatch) -> FakeSnakemake:
    fake = FakeSnakemake()
    monkeypatch.setattr(run_command, "subprocess", fake)
    return fake


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """The report of each time that results were printed."""
    calls: list[Path | None] = []
    monkeypatch.setattr(run_command, "_print_results", lambda config, report: calls.append(report))
    return calls


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two experiments, and the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").write_text("")
    shutil.copytree(REPOSITORY / "config/test", tmp_path / "config/experiments")
    shutil.copyfile("config/experiments/galaxies.yaml", "config/experiments/others.yaml")
    (tmp_path / "config/config.yaml").write_text("experiments: [galaxies, others]\nshards: 3\nresults: made\n")
    return tmp_path


def start(
    *experiments: str, profile: str = "workflow_profiles/local", cores: int | None = None,
    overrides: tuple[str, ...] = (), report: bool = False, snakemake: tuple[str, ...] = (),
    config_file: Path = Path("config/config.yaml"),
) -> int:  # fmt: skip
    return run_workflow(experiments, profile, cores, overrides, config_file, report, snakemake)


def after(command: list[str], option: str) -> list[str]:
    """The words between an option and the next one."""
    words = command[command.index(option) + 1 :]
    end = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:end]


def chosen(command: list[str]) -> dict[str, object]:
    """What follows --config, read as Snakemake reads it."""
    pairs = (word.split("=", 1) for word in after(command, "--config"))
    return {key: json.loads(value) for key, value in pairs}


def leave_note(**values: object) -> None:
    NOTE.parent.mkdir(exist_ok=True)
    NOTE.write_text(json.dumps({"host": platform.node(), "pid": PID, **values}))


def test_all_experiments_of_the_workflow_file(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    assert start() == 0
    (command,) = snakemake.started
    assert after(command, "--profile") == ["workflow_profiles/local"]
    assert after(command, "--configfile") == ["config/config.yaml"]
    assert chosen(command) == {"experiments": ["galaxies", "others"], "shards": 3, "results": "made"}
    assert "--cores" not in command
    assert printed == [None]
    assert snakemake.environments[0]["PATH"].startswith(str(Path(sys.executable).parent))


def test_chosen_experiments_overrides_and_cores(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    overrides = ("others.train.lr=3e-4", "others.model.args={latent: 8}", "others.title=a, b = c")
    start("others", overrides=overrides, cores=3)
    (command,) = snakemake.started
    assert chosen(command) == {"experiments": ["others"], "shards": 3, "results": "made", "set": list(overrides)}
    assert after(command, "--cores") == ["3"]


def test_another_profile_and_workflow_file(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    Path("other.yaml").write_text("experiments: others\n")
    start(profile="workflow_profiles/slurm", config_file=Path("other.yaml"))
    (command,) = snakemake.started
    assert after(command, "--profile") == ["workflow_profiles/slurm"]
    assert after(command, "--configfile") == ["other.yaml"]
    # Not 3 and "made": Snakemake lays other.yaml over config/config.yaml, the library reads it alone.
    assert chosen(command) == {"experiments": ["others"], "shards": 1, "results": "results"}
    assert "--resources" not in command


@pytest.mark.parametrize("gpu_is_there", [True, False])
def test_jobs_take_turns_only_where_there_is_a_gpu(
    snakemake: FakeSnakemake, printed: list[Path | None], monkeypatch: pytest.MonkeyPatch, gpu_is_there: bool
) -> None:
    monkeypatch.setattr(run_command, "_GPUS", Path() if gpu_is_there else Path("absent"))
    start(cores=5)
    command = snakemake.started[0]
    assert ("--resources" in command) is not gpu_is_there
    if not gpu_is_there:
        assert after(command, "--resources") == ["gpu=5"]


def test_further_arguments_come_last(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    start(cores=2, snakemake=("--forcerun", "umap"))
    assert snakemake.started[0][-2:] == ["--forcerun", "umap"]


def test_a_stage_to_end_with_and_another_folder_of_results(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    assert run_workflow(
        ("galaxies",), "workflow_profiles/local", None, (), Path("config/config.yaml"), True, (), "gather", Path("else")
    ) == 0  # fmt: skip
    (command,) = snakemake.started  # and no report
    assert after(command, "--until") == ["gather"]
    assert chosen(command)["results"] == "else"
    assert printed == []


def test_the_report_is_a_second_command_and_is_named_at_the_end(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    start("galaxies", overrides=("galaxies.umap.seed=2",), cores=2, report=True, snakemake=("--forcerun", "umap"))
    first, second = snakemake.started
    assert "--report" not in first
    assert after(second, "--report") == ["made/report.html"]
    assert chosen(second) == chosen(first)
    assert "--forcerun" not in second
    assert printed == [Path("made/report.html")]


def test_results_are_printed_with_their_pages(
    snakemake: FakeSnakemake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summed_up: list[Path] = []
    monkeypatch.setattr("manyscope.evaluation.summary.print_summary", summed_up.append)
    start(report=True)
    assert summed_up == [Path("made")]
    assert capsys.readouterr().out.splitlines() == [
        "page    made/galaxies/explore/index.html",
        "page    made/others/explore/index.html",
        "report  made/report.html",
    ]


@pytest.mark.parametrize("argument", ["--dry-run", "-n"])
def test_a_dry_run_prints_no_summary(snakemake: FakeSnakemake, printed: list[Path | None], argument: str) -> None:
    assert start(snakemake=(argument,), report=True) == 0
    assert len(snakemake.started) == 1
    assert printed == []


def test_a_failing_run_returns_the_code_and_makes_no_report(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    snakemake.codes = [7]
    assert start(report=True) == 7
    assert len(snakemake.started) == 1
    assert printed == []
    assert not NOTE.exists()


def test_a_failing_report_returns_the_code_and_is_not_named(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    snakemake.codes = [0, 5]
    assert start(report=True) == 5
    assert printed == [None]


def test_the_note_of_the_process_is_there_only_while_it_runs(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    seen: list[object] = []
    snakemake.meanwhile = lambda: seen.append(json.loads(NOTE.read_text()))
    start(report=True)
    assert seen == [{"host": platform.node(), "pid": PID}] * 2
    assert not NOTE.exists()
    assert snakemake.unlocked == []


def test_an_interrupted_run_waits_for_snakemake_and_leaves_no_note(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    def interrupt() -> None:
        snakemake.meanwhile = lambda: None
        raise KeyboardInterrupt

    snakemake.meanwhile, snakemake.codes = interrupt, [130]
    assert start(report=True) == 130
    assert not NOTE.exists()
    assert printed == []


def test_the_note_of_a_dead_process_unlocks(
    snakemake: FakeSnakemake, printed: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    leave_note()
    assert start("galaxies") == 0
    (command,) = snakemake.unlocked
    assert "--unlock" in command
    assert chosen(command) == {"experiments": ["galaxies"], "shards": 3, "results": "made"}
    assert len(snakemake.started) == 1
    assert "continuing from what it left" in capsys.readouterr().out
    assert not NOTE.exists()


def test_a_process_of_the_same_number_that_is_no_snakemake_unlocks(
    snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    """Numbers of processes are given again."""
    leave_note(pid=1)
    start()
    assert len(snakemake.unlocked) == 1


def test_the_note_of_another_host_does_not_unlock(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    leave_note(host="another")
    start()
    assert snakemake.unlocked == []
    assert len(snakemake.started) == 1


@pytest.mark.parametrize("text", ["", '{"host": "cut', "[]", '{"host": 3}'])
def test_a_broken_note_does_not_unlock(snakemake: FakeSnakemake, printed: list[Path | None], text: str) -> None:
    NOTE.parent.mkdir()
    NOTE.write_text(text)
    assert start() == 0
    assert snakemake.unlocked == []


def test_a_living_snakemake_is_left_alone(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    waiting = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()", "snakemake"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        leave_note(pid=process.pid)
        with pytest.raises(BusyError, match=rf"process {process.pid}\) of an earlier run is still working; wait for"):
            start()
    assert snakemake.started == snakemake.unlocked == []
    assert NOTE.exists()


def test_a_second_run_in_the_folder_is_refused(snakemake: FakeSnakemake, printed: list[Path | None]) -> None:
    with sole_worker(Path(".snakemake/manyscope.lock")), pytest.raises(BusyError, match="still working"):
        start()
    assert snakemake.started == []


def test_without_a_snakefile_or_with_a_wrong_setting_nothing_starts(snakemake: FakeSnakemake) -> None:
    with pytest.raises(SettingsError, match="did you mean 'lr'"):
        start(overrides=("galaxies.train.lrr=1",))
    with pytest.raises(SettingsError, match="there is no such experiment"):
        start("stars")
    Path("Snakefile").unlink()
    with pytest.raises(ManyscopeError, match="no Snakefile here; run from the project's folder"):
        start()
    assert snakemake.started == []
    assert not Path(".snakemake").exists()


def test_lines_of_the_stages_are_shown_and_those_of_earlier_runs_are_not(
    snakemake: FakeSnakemake, printed: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    longer, shorter, same, old = (Path(f"made/galaxies/logs/{name}.log") for name in ("infer", "train", "umap", "old"))
    longer.parent.mkdir(parents=True)
    for log in (longer, shorter, same, old):
        log.write_text("of an earlier run\n")
        os.utime(log, (0, 0))

    def work() -> None:
        longer.write_text("first, longer than what was here\nsecond\nunfinish")
        shorter.write_text("anew\n")
        same.write_text("of an earlier run\n")

    snakemake.meanwhile = work
    start()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "galaxies infer: first, longer than what was here",
        "galaxies infer: second",
        "galaxies train: anew",
        "galaxies umap: of an earlier run",
    ]


def test_an_experiment_to_start_from_is_shown_but_not_asked_for(
    snakemake: FakeSnakemake, printed: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    log = Path("made/galaxies/logs/train.log")

    def work() -> None:
        log.parent.mkdir(parents=True)
        log.write_text("epoch 1\n")

    snakemake.meanwhile = work
    start("others", overrides=("others.train.start_from=galaxies",))
    assert chosen(snakemake.started[0])["experiments"] == ["others"]
    assert capsys.readouterr().out.splitlines() == ["galaxies train: epoch 1"]


def test_lines_come_while_snakemake_still_runs(
    snakemake: FakeSnakemake, printed: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = threading.Event()
    monkeypatch.setattr(run_command, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(run_command.click, "echo", lambda line: shown.set())
    log = Path("made/galaxies/logs/train.log")

    def work() -> None:
        log.parent.mkdir(parents=True)
        log.write_text("epoch 1\n")
        assert shown.wait(timeout=30)

    snakemake.meanwhile = work
    assert start() == 0


@pytest.mark.parametrize(
    ("code", "arguments", "noted"),
    [(0, (), True), (1, (), False), (0, ("results/galaxies/train/model.ckpt",), False)],
)
def test_a_run_that_ends_well_notes_what_is_older_and_yet_right(
    code: int, arguments: tuple[str, ...], noted: bool, snakemake: FakeSnakemake, printed: list[Path | None]
) -> None:
    paths = ExperimentPaths.of("made", "galaxies")
    for moment, file in enumerate((paths.predictions, paths.model)):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
        os.utime(file, (moment, moment))
    assert newer_source(paths, "infer") == paths.model
    snakemake.codes = [code]
    start("galaxies", snakemake=arguments)
    assert (newer_source(paths, "infer") is None) == noted
