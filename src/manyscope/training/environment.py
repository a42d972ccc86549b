"""What Lightning must know of the launcher."""

from __future__ import annotations

import re
import socket
import subprocess

from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from manyscope.training.launch import Placement

_TIMEOUT_S = 10.0


def environment(where: Placement) -> ClusterEnvironment:
    """Lightning's view of the launcher: said, since it would take any job step of SLURM for a launcher, and would
    submit the job again by itself, which is the workflow's part."""
    return _Srun(auto_requeue=False) if where.launched else LightningEnvironment()


class _Srun(SLURMEnvironment):
    """Finds the first node also on clusters whose node names no name server knows."""

    @staticmethod
    def resolve_root_node_address(nodes: str) -> str:
        name = SLURMEnvironment.resolve_root_node_address(nodes)
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            return _address_in_slurm(name) or name
        return name


def _address_in_slurm(node: str) -> str:
    """The address under which SLURM itself reaches a node; empty if it does not say."""
    try:
        answer = subprocess.run(
            ["scontrol", "show", "node", node], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"\bNodeAddr=(\S+)", answer)
    return found.group(1) if found else ""
