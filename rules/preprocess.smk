rule preprocess:
    """Validate and convert once; deal the samples to train, validation and test."""
    input:
        manifest=path.manifest,
    output:
        samples=path.samples,
    log:
        path.log("preprocess"),
    benchmark:
        path.benchmark("preprocess")
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime=240,
    params:
        results=cfg.results,
        settings=settings_of("preprocess"),
        code=code_of("preprocess"),
    shell:
        "manyscope preprocess --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
