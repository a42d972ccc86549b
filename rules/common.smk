# Path and resource helpers for all rules; no state, no input or output.
path = cfg.paths("{experiment}")  # the library's patterns, with the wildcard in the experiment's place
shard_names = [f"{number:02d}" for number in range(cfg.shards)]


def settings_of(stage):
    """The settings that one stage reads, as JSON: changing another section does not rerun it."""
    return lambda wildcards: cfg.stage_json(wildcards.experiment, stage)


def code_of(stage):
    """A digest of the library code that the stage uses: a change there reruns it."""
    return lambda wildcards: cfg.code_digest(wildcards.experiment, stage)


def growing(megabytes):
    """Memory that doubles with each attempt of a job."""
    return lambda wildcards, attempt: megabytes * 2 ** (attempt - 1)


def launcher(wildcards, threads, resources):
    """`srun` over the whole allocation where the profile sets `mpi`, nothing elsewhere."""
    if not resources.get("mpi"):
        return ""
    return f"{resources.mpi} --nodes={resources.nodes} --ntasks-per-node={resources.tasks_per_node} --cpus-per-task={threads}"
