rule summary:
    """One table of all experiments: metric, model, baseline, interval."""
    input:
        metrics=collect(path.metrics, experiment=cfg.experiments),
    output:
        table=cfg.results / "summary.parquet",
        page=report(
            cfg.results / "summary.html",
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
        code=lambda wildcards: cfg.summary_digest(),
    shell:
        "manyscope summary --results {params.results:q} {params.experiments} > {log} 2>&1"
