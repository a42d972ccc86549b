# The chain, for every experiment of config/config.yaml. One screen; the work is done by the library in src/.
import os

from snakemake.utils import min_version

from manyscope.settings import load_config

min_version("9.10")


configfile: "config/config.yaml"


cfg = load_config(config)  # all problems of all experiments at once, each with file and line
os.environ.update(cfg.site.environment())  # account and tracking server: where, not what, so no reason to rerun


wildcard_constraints:
    experiment="|".join(cfg.known),
    shard=r"\d+",


localrules:  # where Snakemake itself runs: a second's work is not worth a job
    all,
    summary,


report: "docs/report/overview.rst"


include: "rules/common.smk"
include: "rules/download.smk"
include: "rules/preprocess.smk"
include: "rules/train.smk"
include: "rules/infer.smk"
include: "rules/umap.smk"
include: "rules/index.smk"
include: "rules/evaluate.smk"
include: "rules/explore.smk"
include: "rules/summary.smk"


rule all:
    """Every experiment: judged, indexed, on its page, and in the summary of all."""
    input:
        collect(path.metrics, experiment=cfg.experiments),
        collect(path.audit, experiment=cfg.experiments),
        collect(path.page, experiment=cfg.experiments),
        rules.summary.output.page,
