#!/usr/bin/env bash
# Snakemake runs this once in a new conda environment, from the workflow's folder.
set -euo pipefail
python -m pip install --no-deps --editable .
