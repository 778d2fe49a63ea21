# The image for `larmor rayjob`: Python 3.11, and all else from constraints.txt; no package manager's cache, no root.
#
#   docker build -t REGISTRY/larmor:0.1.0 .
#
# BASE is a tag here. `.github/workflows/image.yml` looks its digest up, builds from that (BASE=python:3.11-slim-bookworm@sha256:…)
# and writes it into the image's label org.opencontainers.image.base.digest. Do the same for a build that is to be repeated:
#   docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}'
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# where pip finds PyTorch's CPU build; without it the larger CUDA build is installed
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /opt/larmor
COPY . /source
WORKDIR /source
RUN /opt/larmor/bin/python -m pip install --no-cache-dir -c constraints.txt '.[gcs,azure]'

FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# g++: PyTorch and DeepSpeed compile kernels as they need them; wget: KubeRay asks Ray by it. Versions are not pinned:
# Debian's mirrors keep the newest patch of a package alone
# hadolint ignore=DL3008,SC2016
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ wget \
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
