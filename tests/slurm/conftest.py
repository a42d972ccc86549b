"""One SLURM cluster for all tests of this folder, which are marked `slurm`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import Cluster, missing
from submission import ClusterWorkspace, NewWorkspace
from workspace import make_workspace


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("cluster") / "slurm")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def new_workspace(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewWorkspace]:
    """Makes folders whose workflow can be submitted to the cluster; what still runs at the end is killed."""
    made = []

    def make(*experiments: str, shards: int = 1) -> ClusterWorkspace:
        folder = tmp_path_factory.mktemp("submitted") / "work"
        made.append(
            ClusterWorkspace(make_workspace(folder, shards=shards, experiments=experiments).folder, cluster=cluster)
        )
        return made[-1]

    yield make
    for workspace in made:
        workspace.end()
