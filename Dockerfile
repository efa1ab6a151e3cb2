# sft-hf with all scenarios, for CPUs or, with the default wheels of torch, for GPUs.
#
#   docker build -t sft-hf .
#   docker build -t sft-hf:cpu --build-arg PYTORCH_CPU_INDEX=... .    (the CPU index that pytorch.org names)
#   docker run --rm -v "$PWD:/work" -v sft-hf-cache:/cache sft-hf finetune text
FROM python:3.11-slim

# libsndfile comes with soundfile's wheel; ffmpeg reads what it does not (.m4a, video files).
# Debian's mirrors keep no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /cache /work

WORKDIR /opt/sft-hf
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY sft_hf sft_hf
COPY recipes recipes
ARG PYTORCH_CPU_INDEX=""
RUN pip install --no-cache-dir ${PYTORCH_CPU_INDEX:+--extra-index-url "$PYTORCH_CPU_INDEX"} \
    -c constraints.txt ".[all]"

ENV HF_HOME=/cache/huggingface SFT_HF_CACHE=/cache/sft-hf PYTHONUNBUFFERED=1
VOLUME ["/cache"]
USER 1000
WORKDIR /work
ENTRYPOINT ["sft-hf"]
CMD ["--help"]
