"""The structure that the project promises: who may import whom, what stays out, and files that must agree."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCE = REPOSITORY / "src/manyscope"

# Each room may import itself, those of the rows below its own, and nothing above.
FLOORS = (
    {"cli", "api"},
    {"commands"},
    {"stages"},
    {"scopes"},
    {"data", "training", "latent", "evaluation", "explorer"},
    {"tables"},
    {"settings", "nn"},
    {"registry"},
    {"log", "errors"},
)


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if "templates" not in p.parts)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, but for those that only type checkers see."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    own = name_of(path)
    if not room(own):  # the package itself, which names the face for notebooks and loads it when it is asked for
        assert {m for m in imports(path) if m.startswith("manyscope")} == {"manyscope.api"}
        return
    for module in imports(path):
        if not module.startswith("manyscope."):
            continue
        assert floor(room(module)) >= floor(room(own)), f"{own} imports {module}"
        if room(own) == "scopes" and room(module) == "scopes":
            shared = {"manyscope.scopes.base", "manyscope.scopes.registry"}
            same = module.split(".")[:3] == own.split(".")[:3]
            assert same or module in shared, f"{own} imports another scope: {module}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_what_stays_out(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(path)}
    # Only the command that starts Snakemake knows of it, and as a program, not as a library.
    assert not found & {"snakemake", "pandas", "pickle"}


def test_the_chain_knows_no_scope() -> None:
    scopes = {p.name for p in (SOURCE / "scopes").iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert scopes
    library = [p for p in modules() if "scopes" not in p.parts]
    for path in [*library, SOURCE / "scopes/base.py", SOURCE / "scopes/registry.py"]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        constants = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not scopes & constants, path
        assert not [m for m in imports(path) if m.startswith("manyscope.scopes.") and m.split(".")[2] in scopes], path
    for path in [REPOSITORY / "Snakefile", *(REPOSITORY / "rules").glob("*.smk")]:
        assert not scopes & set(re.findall(r"\w+", path.read_text(encoding="utf-8"))), path


def test_every_scope_has_the_same_rooms() -> None:
    for folder in (SOURCE / "scopes").iterdir():
        if folder.is_dir() and not folder.name.startswith("__"):
            rooms = {p.stem for p in folder.iterdir()}
            assert {"settings", "simulate", "data", "model", "evaluate", "scope"} <= rooms, folder


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("manyscope", {"torch", "numpy", "polars", "pydantic", "click"}),
        ("manyscope.cli", {"torch", "numpy", "polars", "pydantic", "pytorch_lightning"}),
        ("manyscope.api", {"torch", "sklearn", "matplotlib", "chromadb", "umap", "pytorch_lightning", "PIL"}),
        ("manyscope.settings", {"torch", "numpy", "polars", "pyarrow", "sklearn", "matplotlib", "pytorch_lightning"}),
    ],
)
def test_importing_stays_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}


def test_reading_the_whole_configuration_stays_light() -> None:
    code = (
        "import sys; from manyscope.settings import load_config; c = load_config();"
        "[c.code_digest(e, s) for e in c.experiments for s in ('train', 'evaluate')]; print(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert not {"torch", "numpy", "polars", "sklearn"} & {name.split(".")[0] for name in done.stdout.split()}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> dict[str, str]:
    lines = (REPOSITORY / "requirements.lock").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line) for line in lines)
    return {normal(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def test_lock_pins_every_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(text for extra in ("cells", "lance", "onnx", "dev") for text in project["optional-dependencies"][extra]),
    ]
    missing = {normal(re.match(r"[\w.-]+", text)[0]) for text in wanted} - lock().keys()  # type: ignore[index]
    assert not missing


def test_conda_environment_has_the_pins_of_the_lock() -> None:
    pins = lock()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["cells"], *extras["lance"], *extras["onnx"]]
    wanted = {normal(re.match(r"[\w.-]+", text)[0]) for text in texts}  # type: ignore[index]
    environment = YAML(typ="safe").load(REPOSITORY / "envs/manyscope.yaml")
    packages = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    found = {normal(text.partition("==")[0]): text.partition("==")[2] for text in packages}
    assert found == {name: pins[name] for name in wanted}


def test_version_is_the_same_everywhere() -> None:
    import manyscope

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = YAML(typ="safe").load(REPOSITORY / "CITATION.cff")
    assert project["version"] == manyscope.__version__ == citation["version"]


def rules_text() -> dict[str, str]:
    text = "\n".join(p.read_text() for p in sorted((REPOSITORY / "rules").glob("*.smk")))
    return dict(re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.MULTILINE | re.DOTALL))


def test_rules_say_what_they_must() -> None:
    from manyscope.settings import STAGES

    rules = rules_text()
    assert set(STAGES) <= rules.keys()
    for name, body in rules.items():
        for directive in ("log:", "benchmark:", "threads:", "mem_mb=", "runtime=", "conda:", "code=", "shell:"):
            assert directive in body, f"rule {name} has no {directive}"
        assert "retries:" not in body, f"rule {name}: retries multiply on SLURM; they belong to a profile"
        for place in ("slurm", "partition", "a100", "a40"):
            assert place not in body, f"rule {name} names a place: {place}"


def test_every_stage_is_a_module_and_a_verb() -> None:
    from manyscope.cli import main
    from manyscope.settings import STAGES

    assert set(STAGES) == {p.stem for p in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    assert set(STAGES) <= main.commands.keys()


def profile(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(REPOSITORY / "workflow_profiles" / name / "config.v9+.yaml")


def test_profile_of_the_cluster_is_found_from_the_root() -> None:
    assert (REPOSITORY / "slurm").resolve() == REPOSITORY / "workflow_profiles/slurm"
    train = profile("slurm")["set-resources"]["train"]
    assert train["slurm_partition"] == "$MANYSCOPE_PARTITION_A100"
    assert (train["runtime"], train["nodes"]) == (56 * 60, 1)
    assert max(map(int, re.findall(r"\b\d{5,}\b", train["mem_mb"]))) == 600_000


def test_profiles_of_two_kinds_of_gpu_ask_for_the_same() -> None:
    a100, a40 = profile("slurm"), profile("slurm-a40")
    for one in (a100, a40):
        for resources in one["set-resources"].values():
            del resources["mem_mb"]
    # Once in lower and once in upper case, in names, variables and expressions.
    assert json.dumps(a100).replace("a100", "a40").replace("A100", "A40") == json.dumps(a40)


def test_every_rule_has_its_place_on_the_cluster() -> None:
    rules = "".join(file.read_text() for file in (REPOSITORY / "rules").glob("*.smk"))
    names = set(re.findall(r"^rule (\w+):", rules, re.MULTILINE))
    placed = profile("slurm")
    local = re.search(r"^localrules:.*\n((?:    \w+,\n)+)", (REPOSITORY / "Snakefile").read_text(), re.MULTILINE)
    assert local
    assert names == (placed["groups"].keys() | placed["set-resources"].keys() | set(re.findall(r"\w+", local[1]))) - {
        "all"
    }


def test_only_the_profiles_of_clusters_retry() -> None:
    files = [*(REPOSITORY / "rules").glob("*.smk"), REPOSITORY / "Snakefile"]
    assert not [file.name for file in files if "retries" in file.read_text()]
    retrying = {
        folder.name for folder in (REPOSITORY / "workflow_profiles").iterdir() if "retries" in profile(folder.name)
    }
    assert retrying == {"slurm", "slurm-a40"}
