rule train:
    """Fit the model; it can be interrupted at any time and continues from its last checkpoint."""
    input:
        samples=path.samples,
        start=start_of,
    output:
        # train/resume/ is not declared: Snakemake deletes the outputs of a failed job. Nor is train/export/, which
        # only some scopes leave.
        model=path.model,
        history=path.history,
        settings=path.settings,
        run=path.run,
    log:
        path.log("train"),
    benchmark:
        path.benchmark("train")
    conda:
        "../envs/manyscope.yaml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=growing(16_000),
        runtime=720,
    params:
        launch=launcher,
        results=cfg.results,
        settings=settings_of("train"),
        code=code_of("train"),
    shell:
        "{params.launch} manyscope train --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
