"""The file of this computer's paths and accounts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manyscope.errors import SettingsError
from manyscope.settings import Site, load_site

NAMES = {
    "MANYSCOPE_ACCOUNT": "",
    "MANYSCOPE_PARTITION_CPU": "cpu",
    "MANYSCOPE_PARTITION_A100": "a100",
    "MANYSCOPE_PARTITION_A40": "a40",
    "MANYSCOPE_GPU_A100": "a100",
    "MANYSCOPE_GPU_A40": "a40",
}
TEMPLATE = Path(__file__).parents[3] / "config/local.template.yaml"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "local.yaml"
    file.write_text(text)
    return file


def test_defaults_where_there_is_no_file(tmp_path: Path) -> None:
    assert load_site(tmp_path / "absent.yaml") == Site()
    assert Site().environment() == NAMES


def test_environment_carries_only_what_is_set(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, "tracking_uri: http://localhost:5000\nslurm_account: astro\n"))
    assert site.environment() == NAMES | {
        "MLFLOW_TRACKING_URI": "http://localhost:5000", "SBATCH_ACCOUNT": "astro", "MANYSCOPE_ACCOUNT": "astro"
    }  # fmt: skip
    alone = load_site(write(tmp_path, "slurm_account: astro\n")).environment()
    assert alone == NAMES | {"SBATCH_ACCOUNT": "astro", "MANYSCOPE_ACCOUNT": "astro"}


def test_partitions_and_gpus_of_the_profiles_take_their_names_here(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, "slurm_partitions: {a100: gpu-long}\nslurm_gpus: {a100: nvidia_a100}\n"))
    assert site.partitions == {"cpu": "cpu", "a100": "gpu-long", "a40": "a40"}
    assert site.environment() == NAMES | {
        "MANYSCOPE_PARTITION_A100": "gpu-long", "MANYSCOPE_GPU_A100": "nvidia_a100"
    }  # fmt: skip


def test_every_key_is_a_placeholder(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, "data_path: /big\nvariables: {survey: dr3, data_path: hidden}\n"))
    assert site.placeholders() == {
        "data_path": "/big",
        "weights_path": "data/weights",
        "scratch_path": "data/scratch",
        "tracking_uri": None,
        "slurm_account": None,
        "survey": "dr3",
    }


def test_environment_variables_work_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/fast")
    assert load_site(write(tmp_path, "scratch_path: ${env:SCRATCH}/me\n")).scratch_path == Path("/fast/me")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ndata: x\n", ":2: data: unknown key; did you mean 'data_path'?"),
        ("data_path: 3\n", ":1: data_path: found 3, allowed: a path"),
        ("variables:\n  n: 3\n", ":2: variables.n: found 3, allowed: text; put it in quotes"),
        ("tracking_uri: [a]\n", ":1: tracking_uri: found ['a'] (a list), allowed: text or null"),
        ("data_path: ${env:ABSENT_HERE}\n", ":1: data_path: environment variable 'ABSENT_HERE' is not set"),
        (
            "data_path: ${scratch_path}\n",
            ":1: data_path: placeholder '${scratch_path}' is unknown, allowed: env:VARIABLE",
        ),
        (
            "variables:\n  bad name: x\n",
            ":2: variables.bad name: the name cannot be used, allowed: text that matches ^[A-Za-z_]",
        ),
        ("", ":1: the file is empty"),
    ],
)
def test_it_is_strict(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        load_site(file)
    (line,) = error.value.problems
    assert line.startswith(f"{file}{message}")


def test_template_holds_every_key_at_its_default() -> None:
    assert load_site(TEMPLATE) == Site()
    text = TEMPLATE.read_text()
    for key in Site.model_fields:
        assert re.search(rf"^# .+\n{key}: ", text, re.MULTILINE), f"{key} has no comment"
