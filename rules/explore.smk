rule explore:
    """Write the self-contained web page of the map."""
    input:
        samples=path.samples,
        predictions=path.predictions,
        map=path.map,
        annotations=annotations_of,
    output:
        page=report(
            path.page,
            caption="../docs/report/page.rst",
            category="{experiment}",
            labels={"what": "page to explore"},
        ),
    log:
        path.log("explore"),
    benchmark:
        path.benchmark("explore")
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=sized(8_000, each=10),
        runtime=sized(60, each=0.1),
    params:
        results=cfg.results,
        settings=settings_of("explore"),
        code=code_of("explore"),
    shell:
        "manyscope explore --experiment {wildcards.experiment} --results {params.results:q}"
        " --settings {params.settings:q} > {log} 2>&1"
