#!/usr/bin/env bash
# Builds tinycudann in the environment of scenes-cuda.yaml, from the workflow's folder: ten minutes or so, and no GPU.
set -euo pipefail
python -m pip install --requirement requirements.lock
python -m pip install --no-deps --editable .

source_code="$(mktemp -d)"
trap 'rm -rf "$source_code"' EXIT
git clone --quiet https://github.com/NVlabs/tiny-cuda-nn "$source_code"
# The version that the layout of manyscope/nn/hash_grid.py was read from.
git -C "$source_code" checkout --quiet 6ee3546
git -C "$source_code" submodule update --quiet --init --recursive
# Headers of torch 2.13 and later want C++20, and the build asks for 17.
sed -i 's/cpp_standard = 17/cpp_standard = 20/' "$source_code/bindings/torch/setup.py"

# Networks in float32: in half precision the training of scenes is unstable. (The grids ask for float32 either way.)
export TCNN_HALF_PRECISION=0
# Compute capabilities to build for: A100 and A40 unless others are given, such as 90 for H100.
export TCNN_CUDA_ARCHITECTURES="${TCNN_CUDA_ARCHITECTURES:-80,86}"
export CUDA_HOME="$CONDA_PREFIX"
# The driver's library is on GPU nodes only; a stand-in is enough to link with.
export LIBRARY_PATH="$CONDA_PREFIX/lib/stubs:$CONDA_PREFIX/targets/x86_64-linux/lib/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
python -m pip install --no-build-isolation --no-deps "$source_code/bindings/torch"
