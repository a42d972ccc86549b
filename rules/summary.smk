import json


rule summary:
    """All experiments on one page and in one table: metric, model, baseline, interval, map."""
    input:
        metrics=collect(path.metrics, experiment=cfg.experiments),
        maps=collect(path.map_figure, experiment=cfg.experiments),
        runs=collect(path.run, experiment=cfg.experiments),
    output:
        table=cfg.results / "summary.parquet",
        page=report(
            cfg.results / "index.html",
            caption="../docs/report/summary.rst",
            category="Summary",
            labels={"what": "all experiments"},
        ),
    log:
        cfg.results / "summary.log",
    benchmark:
        cfg.results / "summary-benchmark.jsonl"
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=growing(2_000),
        runtime=10,
    params:
        results=cfg.results,
        experiments=" ".join(cfg.experiments),
        titles=lambda wildcards: json.dumps({name: each.title for name, each in cfg.experiments.items()}),
        code=lambda wildcards: cfg.summary_digest(),
    shell:
        "manyscope summary --results {params.results:q} --titles {params.titles:q} {params.experiments} > {log} 2>&1"
