# Path and resource helpers for all rules; no state, no input or output.
path = cfg.paths("{experiment}")  # the library's patterns, with the wildcard in the experiment's place
shard_names = [f"{number:02d}" for number in range(cfg.shards)]


def settings_of(stage):
    """The settings that one stage reads, as JSON: changing another section does not rerun it."""
    return lambda wildcards: cfg.stage_json(wildcards.experiment, stage)


def code_of(stage):
    """A digest of the library code that the stage uses: a change there reruns it."""
    return lambda wildcards: cfg.code_digest(wildcards.experiment, stage)


def start_of(wildcards):
    """The weights that a training starts from, if they are another experiment's, which is then trained first."""
    start = cfg.settings(wildcards.experiment).train.start_from
    return cfg.paths(start).model if start else []


def annotations_of(wildcards):
    """The tables that `manyscope annotate` has added: with another one, or one less, what shows them is made again."""
    return sorted(cfg.paths(wildcards.experiment).annotations.glob("*.parquet"))


def indexed_annotations_of(wildcards):
    """Those whose columns the index may hold: none where it is told to hold no column."""
    return [] if cfg.settings(wildcards.experiment).index.columns == () else annotations_of(wildcards)


def growing(megabytes):
    """Memory that doubles with each attempt of a job."""
    return lambda wildcards, attempt: megabytes * 2 ** (attempt - 1)


def sized(base, each):
    """An amount for a stage that holds every object: a base, and so much for each megabyte of embedded shards, which are
    there when the stage is submitted (docs/scaling.md); doubles with each attempt."""

    def amount(wildcards, attempt):
        files = (cfg.paths(wildcards.experiment).shard(number) for number in range(cfg.shards))
        megabytes = sum(file.stat().st_size for file in files if file.exists()) / 1e6
        return int(base + each * megabytes) * 2 ** (attempt - 1)

    return amount


def launcher(wildcards, threads, resources):
    """How training is started: `srun` over the whole allocation where the profile sets `launcher`, nothing elsewhere.

    Also for one process: a step of its own is what SLURM sends signals to, and Snakemake is not in it. Training is told
    how many processes there shall be, whatever has become of the launcher.
    """
    if not resources.get("tasks_per_node"):
        return ""
    expected = f"MANYSCOPE_PROCESSES={resources.nodes * resources.tasks_per_node}"
    if not resources.get("launcher"):
        return expected
    layout = f"--nodes={resources.nodes} --ntasks-per-node={resources.tasks_per_node} --cpus-per-task={threads}"
    return f"{expected} {resources.launcher} {layout} --kill-on-bad-exit=1"
