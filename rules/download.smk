rule download:
    """Fetch, copy or simulate the raw data; an interrupted download continues."""
    output:
        manifest=path.manifest,
    log:
        path.log("download"),
    benchmark:
        path.benchmark("download")
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=240,
    params:
        results=cfg.results,
        settings=settings_of("download"),
        code=code_of("download"),
    shell:
        "manyscope download --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
