rule evaluate:
    """Judge the model beside its baselines on held-out data, with intervals."""
    input:
        samples=path.samples,
        predictions=path.predictions,
        history=path.history,
    output:
        metrics=path.metrics,
        table=path.metrics_table,
        summary=report(
            path.metrics_figure,
            caption="../docs/report/metrics.rst",
            category="{experiment}",
            labels={"what": "metrics and baselines"},
        ),
        figures=report(
            directory(path.figures),
            patterns=["{figure}.png"],
            caption="../docs/report/figure.rst",
            category="{experiment}",
            labels={"what": "{figure}"},
        ),
    log:
        path.log("evaluate"),
    benchmark:
        path.benchmark("evaluate")
    conda:
        "../envs/manyscope.yaml"
    threads: 2
    resources:
        mem_mb=sized(8_000, each=8),
        runtime=sized(60, each=0.1),
    params:
        results=cfg.results,
        settings=settings_of("evaluate"),
        code=code_of("evaluate"),
    shell:
        "manyscope evaluate --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
