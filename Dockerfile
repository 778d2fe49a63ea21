# The image for `larmor rayjob`: Debian's Python 3.11, and all else from constraints.txt; no compiler's cache, no root.
#
#   docker build -t REGISTRY/larmor:0.1.0 .
#
# BASE is a tag here. `.github/workflows/image.yml` looks its digest up, builds from that (BASE=debian:bookworm-slim@sha256:…)
# and writes it into the image's label org.opencontainers.image.base.digest. Do the same for a build that is to be repeated:
#   docker buildx imagetools inspect debian:bookworm-slim --format '{{.Manifest.Digest}}'
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian's mirrors keep the newest patch of a package alone: versions are not pinned
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# where pip finds PyTorch's CPU build; without it the larger CUDA build is installed
ARG PIP_EXTRA_INDEX_URL=
RUN python3 -m venv /opt/larmor
COPY . /source
WORKDIR /source
RUN /opt/larmor/bin/python -m pip install --no-cache-dir -c constraints.txt '.[gcs,azure]'

FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# g++ and Python's headers: PyTorch and DeepSpeed compile kernels as they need them; wget: KubeRay asks Ray by it
# hadolint ignore=DL3008,SC2016
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ python3 python3-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 larmor \
    && echo 'export PATH=/opt/larmor/bin:$PATH' > /etc/profile.d/larmor.sh
COPY --from=build /opt/larmor /opt/larmor
ENV PATH=/opt/larmor/bin:$PATH \
    PYTHONUNBUFFERED=1
ARG BASE_DIGEST=
LABEL org.opencontainers.image.title="Larmor" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.digest="${BASE_DIGEST}"
USER 1000:1000
WORKDIR /home/larmor
CMD ["larmor", "--help"]
