"""The checks of a cluster by `manyscope doctor`, against clients of SLURM that are small scripts."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.commands.doctor import Finding, Surroundings, clients, cluster, node, places, probe
from manyscope.commands.doctor.requests import Request, profile_values, requests
from manyscope.errors import SettingsError
from manyscope.settings import Site, load_site
from manyscope.settings.source import read_layer

REPOSITORY = Path(__file__).resolve().parents[3]
HEALTHY = """\
cpu*|up|7-00:00:00|4|128000|32|idle|(null)
gpu-long|up|2-08:00:00|1|1000000|64|mixed|gpu:nvidia_a100_80gb:4(S:0-1),shard:a100:8
gpu-long|up|2-08:00:00|1|1000000|64|down*|gpu:nvidia_a100_80gb:4(S:0-1)
gpu-short|up|1:00:00|2|64000|16|idle|gpu:tesla:2
"""
PROFILE = """\
executor: slurm
slurm-status-command: squeue
default-resources:
  slurm_partition: $MANYSCOPE_PARTITION_CPU
  runtime: 60
  mem_mb: 4000
set-threads:
  train: 8
set-resources:
  train:
    slurm_partition: $MANYSCOPE_PARTITION_A100
    nodes: 1
    tasks_per_node: "4 if wildcards.experiment.endswith('_a100') else 1"
    mpi: "'srun' if wildcards.experiment.endswith('_a100') else ''"
    gpu: 0
    gres: "'gpu:$MANYSCOPE_GPU_A100:4' if wildcards.experiment.endswith('_a100') else 'gpu:$MANYSCOPE_GPU_A100:1'"
    mem_mb: "600000 if wildcards.experiment.endswith('_a100') else 120000"
    runtime: 3360
    slurm_extra: "'--signal=USR1@600'"
  infer:
    slurm_partition: $MANYSCOPE_PARTITION_A100
    gpu_model: $MANYSCOPE_GPU_A100
    mem_mb: "input.size_mb * 2"
"""
SITE = Site(
    slurm_account="lab", slurm_partitions={"a100": "gpu-long"}, slurm_gpus={"a100": "nvidia_a100_80gb"}
)  # fits HEALTHY


def printing(text: str) -> str:
    return f"printf '%s' '{text}'"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder to stand in, with a profile, and nothing on the PATH but what a test puts there."""
    folder = tmp_path / "project"
    (folder / "workflow_profiles/slurm").mkdir(parents=True)
    (folder / "workflow_profiles/slurm/config.v9+.yaml").write_text(PROFILE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "MANYSCOPE_"))]:
        monkeypatch.delenv(name)
    return folder


@pytest.fixture
def healthy(program: Callable[..., None], tmp_path: Path) -> Path:
    """A cluster on which all is well; the file in which every call of sbatch is a line."""
    calls = tmp_path / "sbatch.txt"
    program("sbatch", f'case "$*" in --version) echo "slurm 23.02.1";; *) echo "$*" >> {calls};; esac')
    program("sinfo", printing(HEALTHY))
    program("sacctmgr", printing("lab\nlab\nphysics\n"))
    for name in ("squeue", "srun", "scancel", "sacct", "scontrol"):
        program(name)
    return calls


def findings(site: Site = SITE) -> list[Finding]:
    return list(cluster.cluster(Surroundings(Path("config/config.yaml"), site=site)))


def only_failure(site: Site = SITE) -> Finding:
    failed = [finding for finding in findings(site) if finding.state != "ok"]
    assert len(failed) == 1, failed
    assert failed[0].state == "fail"
    return failed[0]


def written(remedy: str, project: Path) -> Site:
    """The site file with the line of a remedy in it."""
    found = re.fullmatch(r"write in config/local\.yaml: (.*)", remedy)
    assert found, remedy
    file = project / "local.yaml"
    file.write_text(found[1] + "\n")
    return load_site(file)


# -------------------------------------------------------------------------------------------------- the clients
def test_no_cluster() -> None:
    assert findings() == [Finding("ok", "SLURM: not on a cluster (there is no sbatch)")]


def test_a_healthy_cluster(healthy: Path) -> None:
    found = findings()
    assert {finding.state for finding in found} == {"ok"}
    assert [finding.what for finding in found] == [
        "SLURM: slurm 23.02.1: sbatch, squeue and sinfo answer",
        "SLURM: accounting works; squeue is asked for the states of jobs",
        "SLURM: partitions cpu, gpu-long are up",
        "SLURM: account lab is accepted",
        "SLURM: train: 1 node(s), GPUs nvidia_a100_80gb:1 on each, 120000 MB, 3360 min in partition gpu-long: accepted",
        "SLURM: infer: 1 node(s), GPUs nvidia_a100_80gb:1, 60 min in partition gpu-long: accepted",
        "SLURM: other rules: 1 node(s), 4000 MB, 60 min in partition cpu: accepted",
    ]
    calls = healthy.read_text().splitlines()
    assert all(call.startswith("--test-only --job-name=manyscope-doctor --account=lab ") for call in calls)
    assert calls[1].endswith(
        "--partition=gpu-long --nodes=1 --cpus-per-task=8 --mem=120000 --time=3360 --gres=gpu:nvidia_a100_80gb:1"
        " --signal=USR1@600 --wrap=true"
    )
    assert "--gpus=nvidia_a100_80gb:1" in calls[2]
    assert "--mem" not in calls[2]  # only a job knows its input
    assert "--ntasks=1" in calls[3]


def test_controller_that_is_down(healthy: Path, program: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    program("sinfo", 'echo "slurm_load_partitions: Unable to contact slurm controller" >&2; exit 1')
    found = findings()
    assert [finding.state for finding in found] == ["fail"]
    assert found[0].what == "SLURM: sinfo fails (Unable to contact slurm controller)"
    program("sinfo", "exec /bin/sleep 30")
    monkeypatch.setattr(clients, "CLIENT_TIMEOUT_S", 0.2)
    assert findings()[0].what == "SLURM: sinfo fails (no answer in 0.2 s)"


def test_queue_that_does_not_answer(healthy: Path, program: Callable[..., None]) -> None:
    program("squeue", "echo 'squeue: error: Invalid user' >&2; exit 1")
    assert only_failure().what == "SLURM: squeue fails (Invalid user)"


def test_clients_that_are_missing(program: Callable[..., None]) -> None:
    program("sbatch")
    assert [finding.what for finding in findings()] == ["SLURM: sbatch is here, but not squeue, sinfo, srun, scancel"]


SACCT = PROFILE.replace("slurm-status-command: squeue\n", "")
NO_SACCT = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_without_accounting_only_squeue_will_do(healthy: Path, program: Callable[..., None], project: Path) -> None:
    program("sacct", NO_SACCT)
    assert "SLURM: no accounting (Slurm accounting storage is disabled); squeue is asked" in findings()[1].what
    assert {finding.state for finding in findings()} == {"ok"}
    (project / "workflow_profiles/slurm/config.v9+.yaml").write_text(SACCT)
    found = only_failure()
    assert found.what.startswith("SLURM: no accounting (Slurm accounting storage is disabled), but")
    assert found.remedy == "write in the profile workflow_profiles/slurm: slurm-status-command: squeue"


def test_accounting_that_is_none_and_says_nothing(healthy: Path, program: Callable[..., None], project: Path) -> None:
    (project / "workflow_profiles/slurm/config.v9+.yaml").write_text(SACCT)
    program("scontrol", "echo 'AccountingStorageType   = accounting_storage/none'")
    assert "no accounting" in only_failure().what


def test_sacct_is_warned_of(healthy: Path, project: Path) -> None:
    (project / "workflow_profiles/slurm/config.v9+.yaml").write_text(SACCT)
    [found] = [finding for finding in findings() if finding.state != "ok"]
    assert (found.state, "a cancelled job" in found.what) == ("warn", True)
    assert found.remedy.endswith("slurm-status-command: squeue")


@pytest.mark.parametrize(("seconds", "state"), [(119, "warn"), (120, "ok"), (300, "ok")])
def test_a_controller_that_forgets_jobs_too_soon(
    healthy: Path, program: Callable[..., None], seconds: int, state: str
) -> None:
    program("scontrol", f"echo 'MinJobAge               = {seconds} sec'")
    assert findings()[1].state == state


# ----------------------------------------------------------------------------------------------- the partitions
def test_partition_that_does_not_exist(healthy: Path, project: Path) -> None:
    found = only_failure(Site(slurm_account="lab", slurm_gpus={"a100": "nvidia_a100_80gb"}))
    assert found.what == "SLURM: partition a100 (train) does not exist; there are: cpu, gpu-long, gpu-short"
    assert found.remedy == "write in config/local.yaml: slurm_partitions: {a100: gpu-long}"
    assert written(found.remedy, project).partitions["a100"] == "gpu-long"


def test_what_the_site_file_names_already_stays(healthy: Path) -> None:
    site = SITE.model_copy(update={"slurm_partitions": {"a100": "gpu-long", "cpu": "normal"}})
    assert only_failure(site).remedy.endswith("slurm_partitions: {a100: gpu-long, cpu: cpu}")


def test_likeliest_partition_has_gpus_of_any_type_at_the_least(healthy: Path, program: Callable[..., None]) -> None:
    program(
        "sinfo", printing("cpu*|up|infinite|4|128000|32|idle|(null)\nbig|up|infinite|1|900000|64|idle|gpu:h100:4\n")
    )
    found = only_failure(Site(slurm_account="lab"))
    assert found.remedy.endswith("slurm_partitions: {a100: big}")


def test_partition_that_is_closed(healthy: Path, program: Callable[..., None]) -> None:
    program("sinfo", printing(HEALTHY.replace("gpu-long|up", "gpu-long|inact")))
    assert only_failure().what.startswith("SLURM: partition gpu-long (train) is not up")


def test_partition_without_a_node_that_is_up(healthy: Path, program: Callable[..., None]) -> None:
    program("sinfo", printing(HEALTHY.replace("mixed", "drained")))
    assert [finding.what for finding in findings() if finding.state == "warn"] == [
        "SLURM: no node is up in partition gpu-long"
    ]


def test_partition_that_the_profile_names_itself(healthy: Path, project: Path) -> None:
    profile = project / "workflow_profiles/slurm/config.v9+.yaml"
    profile.write_text(PROFILE.replace("$MANYSCOPE_PARTITION_CPU", "batch"))
    found = only_failure()
    assert "partition batch (other rules) does not exist" in found.what
    assert found.remedy == "name another one in workflow_profiles/slurm"


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\n"), min_size=1, max_size=12))
def test_the_line_to_write_is_read_back(name: str) -> None:
    text = cluster.line(Surroundings(Path("c")), "slurm_partitions", {"a100": name})
    file = Path("line.yaml")
    file.write_text(text.removeprefix("write in config/local.yaml: ") + "\n")
    assert read_layer(file).values == {"slurm_partitions": {"a100": name}}


# -------------------------------------------------------------------------------------------------- the account
def test_account_that_is_not_the_users(healthy: Path, project: Path) -> None:
    """A cluster that enforces no associations takes any account, and charges nobody."""
    found = only_failure(SITE.model_copy(update={"slurm_account": "wrong"}))
    assert found.what == "SLURM: account wrong is not accepted; yours: lab, physics"
    assert found.remedy == "write in config/local.yaml: slurm_account: lab"
    assert written(found.remedy, project).slurm_account == "lab"


def test_account_that_slurm_refuses(healthy: Path, program: Callable[..., None]) -> None:
    program("sacctmgr", "exit 1")
    refused = "allocation failure: Invalid account or account/partition combination specified"
    program("sbatch", f'case "$*" in *account=lab*) echo "{refused}" >&2; exit 1;; esac')
    found = only_failure()
    assert "account lab is not accepted (Invalid account or account/partition" in found.what
    assert "sacctmgr names none of yours" in found.what
    assert "administrators" in found.remedy
    program("sbatch", f'echo "{refused}" >&2; exit 1')
    assert (
        "no account is set, and there is no default"
        in only_failure(SITE.model_copy(update={"slurm_account": None})).what
    )


def test_account_of_the_environment(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "PHYSICS")  # SLURM keeps accounts in lower case and takes either
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # of an allocation that doctor runs in
    site = SITE.model_copy(update={"slurm_account": None})
    assert {finding.state for finding in findings(site)} == {"ok"}
    assert "account PHYSICS is accepted" in str(findings(site))
    assert "SLURM_JOB_ID" not in clients.environment()


# ------------------------------------------------------------------------------------------------- the requests
def test_gpu_type_that_is_called_otherwise(healthy: Path, project: Path) -> None:
    """One line, though two rules ask for it."""
    found = only_failure(SITE.model_copy(update={"slurm_gpus": {}}))
    assert found.what == "SLURM: no GPU type a100 in partition gpu-long, there: nvidia_a100_80gb"
    assert found.remedy == "write in config/local.yaml: slurm_gpus: {a100: nvidia_a100_80gb}"
    assert written(found.remedy, project).gpus["a100"] == "nvidia_a100_80gb"


def test_partition_without_gpus(healthy: Path) -> None:
    found = [
        one for one in findings(SITE.model_copy(update={"slurm_partitions": {"a100": "cpu"}})) if one.state != "ok"
    ]
    assert (
        "SLURM: no GPU in partition cpu; GPUs elsewhere: gpu-long: nvidia_a100_80gb; gpu-short: tesla" in found[0].what
    )
    assert found[0].remedy == "write in config/local.yaml: slurm_partitions: {a100: gpu-long}"


def test_cluster_without_gpus(healthy: Path, program: Callable[..., None]) -> None:
    program("sinfo", printing(re.sub(r"[^|]*\n", "(null)\n", HEALTHY)))
    assert "no node of this cluster offers GPUs (GRES)" in only_failure().what


def test_gpus_without_a_type(healthy: Path, program: Callable[..., None]) -> None:
    program("sinfo", printing(HEALTHY.replace("gpu:nvidia_a100_80gb:4", "gpu:4")))
    found = [one for one in findings() if one.state != "ok"]
    assert "SLURM: no GPU type nvidia_a100_80gb in partition gpu-long, there: GPUs without a type" in found[0].what
    assert found[0].remedy == "ask for GPUs without a type for train in workflow_profiles/slurm"


@pytest.mark.parametrize(
    ("before", "after", "what", "remedy"),
    [
        (
            "gpu:nvidia_a100_80gb:4",
            "gpu:nvidia_a100_80gb:2",
            "4 GPUs on a node, but those of partition gpu-long have 2",
            2,
        ),
        ("1000000", "512000+", "600000 MB of memory on a node, but partition gpu-long has at most 512000", 512000),
        ("2-08:00:00", "1-00:00:00", "3360 minutes, but partition gpu-long has at most 1440", 1440),
        ("|64|", "|24|", "8 CPUs for each of 4 process(es) on a node, but partition gpu-long has at most 6", 6),
    ],
)
def test_more_than_there_is(
    before: str, after: str, what: str, remedy: int, healthy: Path, program: Callable[..., None]
) -> None:
    there = [clients._nodes(text.split("|", 7)) for text in HEALTHY.replace(before, after).splitlines()]
    here = Surroundings(Path("c"), site=SITE)
    asked = next(iter(requests(profile_values(here.profile), SITE, ["tng_a100"])))
    found = list(cluster._request(asked, there, here, try_it=True))
    assert [one.what for one in found] == [f"SLURM: train: {what}"]
    assert f"at most {remedy}" in found[0].remedy
    assert not healthy.exists()  # SLURM was not asked


def test_request_that_slurm_refuses(healthy: Path, program: Callable[..., None]) -> None:
    program("sbatch", 'case "$*" in *--gres*) echo "sbatch: error: QOSMaxWallDurationPerJobLimit" >&2; exit 1;; esac')
    found = only_failure()
    assert found.what.endswith("in partition gpu-long: refused (QOSMaxWallDurationPerJobLimit)")
    assert "sbatch --test-only --partition=gpu-long" in found.remedy


# -------------------------------------------------------------------------------------------------- the profile
def test_requests_of_each_experiment(project: Path) -> None:
    values = profile_values(project / "workflow_profiles/slurm")
    one, four, *others = requests(values, SITE, ["galaxies", "neutrinos", "tng_a100"])
    assert (one.rule, four.rule) == ("train of galaxies, neutrinos", "train of tng_a100")
    assert (one.gpus, one.tasks_per_node, one.memory_mb) == (1, None, 120_000)
    assert (four.gpus, four.tasks_per_node, four.memory_mb, four.cpus_per_task) == (4, 4, 600_000, 8)
    assert (four.partition_key, four.gpu_key) == ("a100", "a100")
    assert "--ntasks-per-node=4" in four.options()
    assert [request.rule for request in others] == ["infer", "other rules"]


def test_profile_in_the_older_form(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "default-resources:\n  - slurm_partition=old\n  - runtime=2h\nset-resources:\n  - train:gres=gpu:4\n"
        "set-threads: [umap=16]\n"
    )
    train, umap, other = requests(profile_values(tmp_path), Site(), [])
    assert (train.partition, train.gpus, train.gpu_type, train.minutes) == ("old", 4, "", 120)
    assert (umap.cpus_per_task, other.rule) == (16, "other rules")


def test_profile_that_is_not_there(healthy: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no profile"):
        profile_values(tmp_path)
    found = list(cluster.cluster(Surroundings(Path("c"), profile=tmp_path)))
    assert found[-1].state == "fail"
    assert "--profile" in found[-1].remedy


def test_variable_that_nothing_sets(healthy: Path, project: Path) -> None:
    profile = project / "workflow_profiles/slurm/config.v9+.yaml"
    profile.write_text(PROFILE.replace("PARTITION_A100", "PARTITION_H100"))
    found = only_failure()
    assert "partition $MANYSCOPE_PARTITION_H100 (train) does not exist" in found.what
    assert found.remedy.endswith("slurm_partitions: {a100: gpu-long, h100: gpu-long}")


@pytest.mark.parametrize("name", ["slurm", "slurm-a40"])
def test_profiles_of_this_repository_can_be_read(name: str) -> None:
    asked = {one.rule: one for one in requests(profile_values(REPOSITORY / "workflow_profiles" / name), Site(), ["x"])}
    kind = "a40" if name.endswith("a40") else "a100"
    for rule in ("train", "infer"):
        assert (asked[rule].partition_key, asked[rule].gpu_key, asked[rule].gpu_type) == (kind, kind, kind)
        assert asked[rule].gpus
        assert asked[rule].memory_mb
        assert asked[rule].minutes
    for group in ("group prepare", "group finish"):
        assert asked[group].partition_key == "cpu"
    assert asked["group prepare"].minutes == 480
    assert asked["group finish"].cpus_per_task == 8
    assert asked.keys() == {"train", "infer", "group prepare", "group finish"}


def test_rules_of_a_group_are_one_job(healthy: Path, project: Path) -> None:
    extra = "  umap:\n    mem_mb: 9000\n    runtime: 90\n"
    text = PROFILE.replace("set-threads:", "groups:\n  gather: finish\n  umap: finish\nset-threads:\n  umap: 4") + extra
    (project / "workflow_profiles/slurm/config.v9+.yaml").write_text(text)
    [found] = [finding.what for finding in findings() if "group" in finding.what]
    assert found == "SLURM: group finish: 1 node(s), 13000 MB, 150 min in partition cpu: accepted"
    assert "--cpus-per-task=4 --mem=13000 --time=150" in healthy.read_text()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("infinite", None), ("7-00:00:00", 10080), ("2-08:30:00", 3390), ("30:00", 30), ("n/a", None)],
)
def test_limits_on_wall_time(limit: str, expected: int | None) -> None:
    assert clients.minutes(limit) == expected


# --------------------------------------------------------------------------------------------- the compute nodes
SRUN = 'while [ "$1" != "-m" ]; do shift; done; exec {python} "$@"'


def node_findings(site: Site = SITE) -> dict[str, Finding]:
    here = Surroundings(Path("config/config.yaml"), site=site)
    return {finding.what.split()[3].rstrip(":"): finding for finding in node.compute_nodes(here)}


def test_nodes_that_see_everything(healthy: Path, program: Callable[..., None], project: Path) -> None:
    program("srun", SRUN.format(python=sys.executable))
    found = node_findings()
    assert set(found) == {"cpu", "gpu-long"}
    assert found["cpu"].state == "ok"
    assert "results shared" in found["cpu"].what
    assert [entry.name for entry in project.iterdir()] == ["workflow_profiles"]  # nothing is left behind


def test_what_a_job_on_a_node_asks_for(healthy: Path, program: Callable[..., None], tmp_path: Path) -> None:
    program("srun", f'echo "$*" >> {tmp_path}/calls; echo "srun: error: slurm says no" >&2; exit 1')
    found = node_findings()
    assert {one.state for one in found.values()} == {"fail"}
    assert "the job failed (slurm says no)" in found["cpu"].what
    assert sys.executable in found["cpu"].remedy
    calls = sorted((tmp_path / "calls").read_text().splitlines(), key=lambda call: "gres" in call)
    assert "--partition=cpu" in calls[0]
    assert "--gres=gpu:nvidia_a100_80gb:1 --account=lab" in calls[1]


@pytest.mark.parametrize(("reason", "state"), [("Resources", "warn"), ("AssocGrpGRES", "fail")])
def test_job_that_stays_pending(
    reason: str,
    state: str,
    healthy: Path,
    program: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    project: Path,
) -> None:
    monkeypatch.setattr(node, "WAIT_S", 1.5)
    program(
        "srun",
        'for word; do case "$word" in --comment=*) '
        f'echo "7|${{word#--comment=}}|PENDING ({reason})" >> {tmp_path}/queue;; esac; done; exec /bin/sleep 30',
    )
    program("squeue", f'while read -r line; do echo "$line"; done < {tmp_path}/queue')
    program("scancel", f'echo "$*" >> {tmp_path}/cancelled')
    found = node_findings()
    assert found["cpu"].state == state
    assert f"still PENDING ({reason}) after 1.5 s and is cancelled" in found["cpu"].what
    assert (tmp_path / "cancelled").read_text().split() == ["7", "7"]
    assert [entry.name for entry in project.iterdir()] == ["workflow_profiles"]


GOOD = {
    "host": "n1", "python": "3.11.7", "torch": "2.9", "cuda": "12.8", "gpus": ["A100"], "given_gpus": ["0"],
    "has_driver": True, "is_shared": True, "scratch_writable": True, "scratch_free_gib": 9.0, "missing_weights": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "state", "what"),
    [
        ({}, "ok", "Python 3.11.7, torch 2.9, CUDA 12.8, 1 GPU(s)"),
        ({"is_shared": False}, "fail", "of this machine is not there"),
        ({"scratch_writable": False}, "fail", "scratch_path data/scratch cannot be written"),
        ({"missing_weights": "is empty"}, "fail", "missing weights: weights_path nets is empty"),
        ({"torch": None, "torch_error": "no module"}, "fail", "torch cannot be imported (no module)"),
        ({"gpus": []}, "fail", "torch does not see the GPU"),
        ({"gpus": [], "has_driver": False}, "warn", "the node has no driver"),
        ({"gpus": [], "given_gpus": []}, "fail", "SLURM gave the job no GPU"),
    ],
)
def test_what_the_answers_of_a_node_mean(change: dict[str, object], state: str, what: str) -> None:
    here = Surroundings(Path("c"), site=Site(weights_path=Path("nets")))
    found = node._judged({**GOOD, **change}, "compute node of a100", True, here)
    assert found.state == state
    assert what in found.what
    assert bool(found.remedy) == (state != "ok")


def test_what_a_node_looks_at(project: Path) -> None:
    (project / "file").write_text("in the way")
    marker = project / "marker"
    seen = probe.look(marker, project / "file/scratch", project / "nets")
    assert (seen["is_shared"], seen["scratch_writable"], seen["missing_weights"]) == (False, False, "is not there")
    marker.write_text("another file of this name")
    assert probe.look(marker, project, None)["is_shared"] is False
    marker.write_text("marker")
    seen = json.loads(json.dumps(probe.look(marker, project, None)))
    assert (seen["is_shared"], seen["scratch_writable"], seen["missing_weights"]) == (True, True, "")
    (project / "nets").mkdir()
    (project / "nets/manifest.json").write_text('{"net": {"file": "net", "bytes": 3}}')
    missing = json.loads(json.dumps(probe.look(marker, project, project / "nets")))["missing_weights"]
    assert missing == "does not hold what its manifest.json names: net is missing"


def test_folder_that_is_shut(project: Path) -> None:
    assert places.can_write(project / "deep/down")
    assert not places.can_write(Path("/proc/deep"))
    assert places.missing_weights(project / "workflow_profiles") == ""


def test_options_without_a_node_count() -> None:
    asked = Request("infer", "a100", gpu_type="a40", gpus=2, minutes=10)
    assert asked.options() == ["--partition=a100", "--cpus-per-task=1", "--time=10", "--gpus=a40:2"]
