# An image without CUDA. TORCH_INDEX is PyTorch's package index of CPU builds; its Get Started page shows it.
#   docker build -f docker/cpu.Dockerfile --build-arg TORCH_INDEX=... -t mclip_fairseq:cpu .
#   docker run --rm -v "$PWD:/data" mclip_fairseq:cpu mclip-search query photos.index "ein Hund am Strand"
FROM python:3.12-slim

ARG TORCH_INDEX
ARG EXTRAS=evaluate,export,heic,prepare,search
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

WORKDIR /opt/mclip_fairseq
COPY constraints.txt ./
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX=..., PyTorch's index of CPU builds" >&2; exit 1; }; \
    pip install -c constraints.txt --index-url "$TORCH_INDEX" torch

COPY pyproject.toml setup.py README.md LICENSE ./
COPY mclip_fairseq mclip_fairseq
COPY preprocess preprocess
RUN pip install -c constraints.txt ".[$EXTRAS]" \
    && MCLIP_CACHE=/tmp/cache PIP_CONSTRAINT=constraints.txt mclip-doctor --fix \
    && rm -r /tmp/cache

RUN useradd --create-home mclip
USER mclip
WORKDIR /data
CMD ["mclip-doctor"]
