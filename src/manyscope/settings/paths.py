"""Where every file of an experiment lies: the one place in which a path pattern is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExperimentPaths:
    """The files of one experiment under `results/<experiment>/`.

    Also used with wildcards in `root`, so that rules and library share the same patterns.
    """

    root: Path

    @classmethod
    def of(cls, results: str | Path, experiment: str) -> ExperimentPaths:
        return cls(Path(results) / experiment)

    @property
    def experiment(self) -> str:
        return self.root.name

    def beside(self, experiment: str) -> ExperimentPaths:
        """The files of another experiment in the same results folder."""
        return ExperimentPaths(self.root.parent / experiment)

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def manifest(self) -> Path:
        return self.raw / "manifest.parquet"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared"

    @property
    def samples(self) -> Path:
        return self.prepared / "samples.parquet"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def model(self) -> Path:
        return self.train / "model.ckpt"

    @property
    def history(self) -> Path:
        return self.train / "history.parquet"

    @property
    def settings(self) -> Path:
        return self.train / "settings.yaml"

    @property
    def run(self) -> Path:
        return self.train / "run.json"

    @property
    def resume(self) -> Path:
        """Not a declared output: it survives a failed job."""
        return self.train / "resume"

    @property
    def export(self) -> Path:
        """What a scope's `fit` leaves for its field's own tools, if anything; not a declared output."""
        return self.train / "export"

    @property
    def onnx(self) -> Path:
        """The trained model for other programs, beside a JSON file of what was measured; not a declared output."""
        return self.root / "export" / "model.onnx"

    @property
    def infer(self) -> Path:
        return self.root / "infer"

    def shard(self, number: int | str) -> Path:
        name = f"{number:02d}" if isinstance(number, int) else number
        return self.infer / f"shard-{name}.parquet"

    @property
    def files(self) -> Path:
        """What a scope writes while it predicts, if anything; not a declared output: all shards write here."""
        return self.infer / "files"

    @property
    def predictions(self) -> Path:
        return self.infer / "predictions.parquet"

    @property
    def umap(self) -> Path:
        return self.root / "umap"

    @property
    def map(self) -> Path:
        return self.umap / "umap.parquet"

    @property
    def reducer(self) -> Path:
        return self.umap / "reducer.npz"

    @property
    def map_quality(self) -> Path:
        return self.umap / "quality.json"

    @property
    def map_figure(self) -> Path:
        return self.umap / "map.png"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def audit(self) -> Path:
        return self.index / "audit.json"

    @property
    def evaluate(self) -> Path:
        return self.root / "evaluate"

    @property
    def metrics(self) -> Path:
        return self.evaluate / "metrics.json"

    @property
    def metrics_table(self) -> Path:
        return self.evaluate / "metrics.parquet"

    @property
    def metrics_figure(self) -> Path:
        return self.evaluate / "metrics.png"

    @property
    def figures(self) -> Path:
        return self.evaluate / "figures"

    @property
    def annotations(self) -> Path:
        """Columns that `manyscope annotate` has joined to the objects, a file for each table."""
        return self.root / "annotations"

    @property
    def edits(self) -> Path:
        """What `manyscope edit` writes, a folder for each call."""
        return self.root / "edits"

    @property
    def explore(self) -> Path:
        return self.root / "explore"

    @property
    def page(self) -> Path:
        return self.explore / "index.html"

    def lock(self, stage: str, shard: int = 0) -> Path:
        """Held while a stage writes its files: one for each shard's file, however many shards there are."""
        return self.root / ".locks" / (f"{stage}-{shard}" if stage == "infer" else stage)

    @property
    def confirmed(self) -> Path:
        """What a run has found right although it is older than what it is made of; there only if something is."""
        return self.root / "confirmed.json"

    def log(self, job: str) -> Path:
        """Logs have a folder of their own, since some stages replace theirs whole."""
        return self.root / "logs" / f"{job}.log"

    def benchmark(self, job: str) -> Path:
        return self.root / "benchmarks" / f"{job}.jsonl"
