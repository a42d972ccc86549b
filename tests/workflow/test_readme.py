"""What the README shows is what the workflow does."""

from __future__ import annotations

import re

import pytest
from ruamel.yaml import YAML

from workspace import REPOSITORY, Workspace

pytestmark = pytest.mark.slow


def test_picture_of_the_chain_is_the_rulegraph() -> None:
    text = Workspace(REPOSITORY).snakemake("--rulegraph", "mermaid-js").stdout
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", text))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", text)}
    blocks = re.findall(r"```mermaid\nflowchart TB\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    assert set(re.findall(r"(\w+) --> (\w+)", blocks[0])) == edges
    assert len(edges) > 10


def test_table_lists_every_experiment() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE))
    assert listed == {p.stem for p in (REPOSITORY / "config/experiments").glob("*.yaml")}
    default = YAML(typ="safe").load(REPOSITORY / "config/config.yaml")["experiments"]
    assert set(default) <= listed


def test_commands_exist() -> None:
    from manyscope.cli import main

    readme = (REPOSITORY / "README.md").read_text()
    verbs = set(re.findall(r"^manyscope (\w+)", readme, re.MULTILINE))
    assert verbs
    assert verbs <= main.commands.keys()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
