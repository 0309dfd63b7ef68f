#!/usr/bin/env bash
# Fetch what `make gpu` needs on a machine with a GPU, Python 3.12, torch, transformers and scikit-learn, but without a
# network:
#
#   benchmarks/gpu/wheels.sh FOLDER        # in the checkout, where there is a network; FOLDER goes to the machine
#
# There, in the checkout:
#
#   python3 -m pip install --no-index --no-deps --upgrade --target /tmp/site FOLDER/*.whl
#   PYTHONPATH=/tmp/site:$PWD make gpu VENV= OUT=FIGURES
#
# 33 MB, in the versions of constraints.txt. PYTHON is a Python with pip, setuptools and wheel.
set -euo pipefail
folder=${1:?give the folder for the wheels}
python=${PYTHON:-python3}
needed='bitarray|colorama|fairseq-fixed|ftfy|hydra-core|hypothesis|iniconfig|lxml|omegaconf|pluggy|portalocker|'
needed+='protobuf|pygments|pytest|pytest-timeout|regex|sacrebleu|sentencepiece|sortedcontainers|tabulate|tqdm|wcwidth'
mkdir -p "$folder"
source=$(grep '^antlr4-python3-runtime==' constraints.txt) # has no wheel; pure Python
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" "$source"
mapfile -t wheels < <(grep -iE "^($needed)==" constraints.txt)
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64 \
  --dest "$folder" "${wheels[@]}"
du -sh "$folder"
