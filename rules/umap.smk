rule umap:
    """Map the latent vectors to two or three dimensions."""
    input:
        predictions=path.predictions,
    output:
        map=path.map,
        reducer=path.reducer,
        quality=path.map_quality,
        figure=report(
            path.map_figure,
            caption="../docs/report/map.rst",
            category="{experiment}",
            labels={"what": "map of the latent space"},
        ),
    log:
        path.log("umap"),
    benchmark:
        path.benchmark("umap")
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=sized(8_000, each=10),
        runtime=sized(60, each=0.2),
    params:
        results=cfg.results,
        settings=settings_of("umap"),
        code=code_of("umap"),
    shell:
        "manyscope umap --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
