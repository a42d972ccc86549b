"""A real two-node SLURM cluster on this machine, in a folder of its own, for as long as a test session lasts.

Both nodes are slurmd processes of this host that claim more than it has: 128 CPUs, 1 TB and four A100s each. SLURM
counts the GPUs and hands them out, but they are null devices. Good for submission, partitions, requests, retries,
preemption, time limits and the layout of ranks; not for speed, the enforcement of memory, or CUDA.

Munge, mariadbd, slurmdbd, slurmctld and two slurmd run as root, with every file in the folder, and are stopped by the
process ids that they wrote there. Only the link /etc/slurm/slurm.conf lies outside: inside a job, Snakemake's executor
removes SLURM_CONF from the environment, so that clients find the configuration at its compiled-in place alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from workspace import command_line, descendants

NODES = ("a100-1", "a100-2")
ACCOUNT = "lab"
INSTALLED = Path("/etc/slurm/slurm.conf")
PROGRAMS = (
    "munged", "munge", "mariadbd", "mariadb-install-db", "mariadb-admin", "slurmdbd", "slurmctld", "slurmd",
    "sacctmgr", "sbatch", "srun", "sacct", "squeue", "sinfo", "scontrol", "scancel",
)  # fmt: skip
_TIMEOUT_S = 30.0
_BATCH_STEP = 0xFFFFFFFB

_CONF = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPort={ports[0]}
SrunPortRange={ports[3]}-{ports[4]}

# No cgroups: process trees are followed through /proc.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
MailProg=/bin/true

# The only selector that understands --gpus.
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=2,sched_min_interval=0
ReturnToService=2
JobRequeue=1
KillWait=10
OverTimeLimit=0
SlurmdTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=0

# Nodes claim more than the machine has; without this slurmd would drain them.
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
# The connection to slurmdbd takes munge's socket from here, not from AuthInfo.
AccountingStoragePass={folder}/munge/socket
AccountingStoragePort={ports[5]}
AccountingStorageTRES=gres/gpu,gres/gpu:a100
AccountingStorageEnforce=associations
AccountingStoreFlags=job_comment

NodeName=a100-1 Port={ports[1]} {node}
NodeName=a100-2 Port={ports[2]} {node}
PartitionName=cpu Nodes=a100-1,a100-2 Default=YES MaxTime=7-00:00:00 DefMemPerCPU=1000 PriorityTier=10 State=UP
PartitionName=a100 Nodes=a100-1,a100-2 MaxTime=56:00:00 DefMemPerCPU=1000 PriorityTier=10 PreemptMode=off State=UP
PartitionName=scavenge Nodes=a100-1,a100-2 MaxTime=56:00:00 DefMemPerCPU=1000 PriorityTier=1 \
PreemptMode=requeue State=UP
"""
_NODE = (
    "NodeHostname={host} NodeAddr=127.0.0.1 CPUs=128 Boards=1 SocketsPerBoard=1 CoresPerSocket=128 ThreadsPerCore=1"
    " RealMemory=1000000 Gres=gpu:a100:4 State=UNKNOWN"
)
_DBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[5]}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
"""
# Read only where a plugin for cgroups is loaded; it keeps Slurm from looking for dbus.
_CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nIgnoreSystemd=yes\n"


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid():
        return "only root can start the daemons of SLURM"
    absent = [name for name in PROGRAMS if not _program(name)]
    if absent:
        return f"SLURM is not installed: there is no {', '.join(absent)} (make test-slurm installs it)"
    if INSTALLED.exists() and not INSTALLED.is_symlink():
        return f"{INSTALLED} is a file: this machine has a cluster of its own"
    return ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/sbin")


@dataclass
class Cluster:
    """The cluster in `folder`; `start` and `stop` it."""

    folder: Path
    _before: Path | None = field(default=None, init=False)

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a user of the cluster has in the shell: this Python first, and the cluster's configuration."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self.configuration),
            "MYSQL_UNIX_PORT": str(self.folder / "mysql.sock"),  # where slurmdbd's client library looks
        }

    def run(self, *command: str, check: bool = True) -> str:
        """What a client command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def start(self) -> None:
        for folder in (self.folder / "state", self.folder / "munge", self.folder / "gpus", *map(self._spool, NODES)):
            folder.mkdir(parents=True)
        self._configure()
        self._before = INSTALLED.readlink() if INSTALLED.is_symlink() else None
        INSTALLED.parent.mkdir(exist_ok=True)
        INSTALLED.unlink(missing_ok=True)
        INSTALLED.symlink_to(self.configuration)
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        munge.chmod(0o711)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", *(f"--{option}={munge / name}" for option, name in files.items()), "--force")
        self._wait(lambda: self.run("munge", "-S", str(munge / "socket"), "-n"))
        self._start_accounting()
        self._daemon("slurmctld")
        self._wait(lambda: "UP" in self.run("scontrol", "ping"))
        for node in NODES:
            self.start_node(node)

    def stop(self) -> None:
        """Stop what runs, in the reverse order, and give back the link to the configuration."""
        names = [*(f"slurmd.{node}.pid" for node in NODES), "slurmctld.pid", "slurmdbd.pid", "mysql.pid", "munge/pid"]
        for name in names:
            _end(self.folder / name)
        if INSTALLED.is_symlink() and INSTALLED.readlink() == self.configuration:
            INSTALLED.unlink()
            if self._before:
                INSTALLED.symlink_to(self._before)

    def start_node(self, node: str) -> None:
        """Start a node, also one that failed, and wait until it takes jobs."""
        self._daemon("slurmd", "-N", node)
        self._wait(lambda: self.run("sinfo", "-h", "-p", "cpu", "-n", node, "-o", "%t").strip() in ("idle", "mix"))

    def fail_node(self, node: str) -> None:
        """Kill the node's daemon and everything that its jobs run, as a power cut does."""
        daemon = self.folder / f"slurmd.{node}.pid"
        # The names of a node's steps are known from their sockets, a step's process by its title "slurmstepd: [1.0]".
        titles = {f"[{step.name.removeprefix(f'{node}_')}]" for step in self._spool(node).glob(f"{node}_*.*")}
        titles |= {title.replace(f".{_BATCH_STEP}]", ".batch]") for title in titles}
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        steps = [pid for pid in pids if titles & set(" ".join(command_line(pid)).removeprefix("slurmstepd: ").split())]
        doomed = [int(daemon.read_text()), *steps, *(child for pid in steps for child in descendants(pid))]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.unlink()

    def jobs(self, *fields: str) -> list[dict[str, str]]:
        """Every job allocation that the accounting knows, oldest first, requeued ones once for each start."""
        wanted = ("JobID", "JobName", "State", "Partition", "ReqTRES", "Comment", "NodeList", *fields)
        text = self.run("sacct", "-X", "-D", "-P", "-n", "-S", "now-1day", "-E", "now", "-o", ",".join(wanted))
        return [dict(zip(wanted, line.split("|"), strict=True)) for line in text.splitlines()]

    def _spool(self, node: str) -> Path:
        return self.folder / f"spool.{node}"

    def _configure(self) -> None:
        ports = _free_ports()
        host = socket.gethostname().partition(".")[0]
        values = {"folder": self.folder, "host": host, "ports": ports, "node": _NODE.format(host=host)}
        files = {"slurm.conf": _CONF, "slurmdbd.conf": _DBD_CONF}
        for name, text in files.items():
            (self.folder / name).write_text(text.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)  # slurmdbd refuses one that others can read
        (self.folder / "cgroup.conf").write_text(_CGROUP_CONF)
        gpus = []
        for node in NODES:
            gpus.append(f"NodeName={node} Name=gpu Type=a100 File={self.folder}/gpus/nvidia[0-3]\n")
        (self.folder / "gres.conf").write_text("".join(gpus))
        for number in range(4):
            device = self.folder / f"gpus/nvidia{number}"
            try:
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
            except OSError:
                device.touch()  # where mknod is not allowed an ordinary file does too

    def _start_accounting(self) -> None:
        data = self.folder / "mysql"
        self._call(
            "mariadb-install-db", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=socket",
            "--skip-test-db",
        )  # fmt: skip
        with (self.folder / "mysql.log").open("ab") as log:
            subprocess.Popen(
                [
                    _program("mariadbd") or "", "--no-defaults", "--user=root", f"--datadir={data}",
                    f"--socket={self.folder / 'mysql.sock'}", "--skip-networking",
                    f"--pid-file={self.folder / 'mysql.pid'}", "--innodb-lock-wait-timeout=900",
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait(lambda: self.run("mariadb-admin", f"--socket={self.folder / 'mysql.sock'}", "ping"))
        self._daemon("slurmdbd")
        self._wait(lambda: self.run("sacctmgr", "-n", "list", "cluster") is not None)
        for what in (["cluster", "two"], ["account", ACCOUNT, "cluster=two"], ["user", "root", f"account={ACCOUNT}"]):
            self.run("sacctmgr", "-i", "add", *what, check=False)

    def _daemon(self, name: str, *arguments: str) -> None:
        """Start a program that turns itself into a daemon."""
        self._call(name, *arguments)

    def _call(self, name: str, *arguments: str) -> None:
        program = _program(name) or name
        with (self.folder / f"{name}.out").open("ab") as log:
            # Not through a pipe: the daemon would hold it open.
            code = subprocess.run(
                [program, *arguments], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                timeout=60,
            ).returncode  # fmt: skip
        if code:
            raise RuntimeError(f"{name} ended with {code}: {(self.folder / f'{name}.out').read_text()[-500:]}")

    def _wait(self, ready: Callable[[], object]) -> None:
        end = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                if ready() is not False:
                    return
                reason = "not ready"
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                reason = str(error)
            if time.monotonic() > end:
                raise RuntimeError(f"the cluster did not start in {_TIMEOUT_S:g} s: {reason}")
            time.sleep(0.1)


def _free_ports() -> list[int]:
    """One port each for slurmctld, two slurmd, a range of srun (two numbers), and slurmdbd."""
    for base in range(26_000, 32_000, 300):
        single = [base, base + 1, base + 2, base + 5]
        if all(_is_free(port) for port in single):
            return [base, base + 1, base + 2, base + 100, base + 199, base + 5]
    raise RuntimeError("no free ports between 26000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _end(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # mariadbd is a child, and would stay as a zombie
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)
