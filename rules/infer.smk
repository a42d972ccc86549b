rule infer:
    """Apply the trained model to one shard of the samples."""
    input:
        samples=path.samples,
        model=path.model,
    output:
        # infer/files/ is not declared: the shards share it, and only some scopes write there.
        shard=path.shard("{shard}"),
    log:
        path.log("infer-{shard}"),
    benchmark:
        path.benchmark("infer-{shard}")
    conda:
        "../envs/manyscope.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=growing(8_000),
        runtime=240,
    params:
        results=cfg.results,
        settings=settings_of("infer"),
        code=code_of("infer"),
        shard=lambda wildcards: int(wildcards.shard),
        shards=cfg.shards,
    shell:
        "manyscope infer --experiment {wildcards.experiment} --results {params.results:q}"
        " --shard {params.shard} --shards {params.shards} --settings {params.settings:q} > {log} 2>&1"


rule gather:
    """Join the shards into one latent table, every sample accounted for once, and add outlier scores."""
    input:
        samples=path.samples,
        shards=collect(path.shard("{shard}"), shard=shard_names, allow_missing=True),
    output:
        predictions=path.predictions,
    log:
        path.log("gather"),
    benchmark:
        path.benchmark("gather")
    conda:
        "../envs/manyscope.yaml"
    threads: 1
    resources:
        mem_mb=sized(4_000, each=10),
        runtime=sized(60, each=0.1),
    params:
        results=cfg.results,
        settings=settings_of("gather"),
        code=code_of("gather"),
        shards=cfg.shards,
    shell:
        "manyscope gather --experiment {wildcards.experiment} --results {params.results:q}"
        " --shards {params.shards} --settings {params.settings:q} > {log} 2>&1"
