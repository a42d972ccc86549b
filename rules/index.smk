rule index:
    """Build the vector index, with the columns to filter by, and audit it against exact search."""
    input:
        samples=path.samples,
        predictions=path.predictions,
        annotations=indexed_annotations_of,
    output:
        audit=path.audit,
    log:
        path.log("index"),
    benchmark:
        path.benchmark("index")
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=sized(4_000, each=16),
        runtime=sized(60, each=0.2),
    params:
        results=cfg.results,
        settings=settings_of("index"),
        code=code_of("index"),
    shell:
        "manyscope index --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
