# An image with CUDA: pip's torch brings the CUDA libraries, and the host its driver and the NVIDIA container toolkit.
#   docker build -f docker/cuda.Dockerfile -t mclip_fairseq:cuda .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" mclip_fairseq:cuda mclip-doctor
FROM python:3.12-slim

ARG EXTRAS=evaluate,export,heic,prepare,search
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

WORKDIR /opt/mclip_fairseq
COPY constraints.txt ./
RUN pip install -c constraints.txt torch

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
