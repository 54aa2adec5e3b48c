# The image of `headwater`: a virtual environment of what it needs, made in one stage, and the service itself,
# made in another, copied into a third as two layers: a new release is one of a few hundred kilobytes.
#
#   docker build -t headwater .                                  for CPUs
#   docker build -t headwater --build-arg TORCH_BACKEND=index .  for NVIDIA GPUs, 4 GB larger
#
# Written for the classic builder too (no cache mounts, no heredocs), so that any engine since 20.10,
# docker-compose 1.29 and podman build it.

FROM python:3.11-slim-bookworm AS dependencies

# cpu: torch without CUDA. The package index has no such build for Linux, so uv takes it from
# PyTorch's own, at the locked version; its hash is the only one that the lock cannot enforce.
# index: everything from the package index by the lock's hashes; its torch is the CUDA build.
ARG TORCH_BACKEND=cpu

# UV_COMPILE_BYTECODE: the user of the image cannot write any, and each start would compile anew.
# UV_SYSTEM_CERTS: trust what the base image trusts, such as a company's own authority.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_SYSTEM_CERTS=1 \
    VIRTUAL_ENV=/opt/headwater

WORKDIR /build

COPY requirements-build.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && python -m venv --without-pip "$VIRTUAL_ENV"

# `uv pip check` proves that what the cpu case leaves out is what its torch does not need.
# Headers and static libraries serve compilers, of which the image has none.
COPY requirements-serve.lock ./
RUN set -eu; \
    torch="$(grep -oE '^torch==[0-9.]+' requirements-serve.lock)"; \
    case "$TORCH_BACKEND" in \
      cpu) awk '/^[a-z0-9]/ { keep = !/^(torch=|triton=|cuda-|nvidia-)/ } keep' \
             requirements-serve.lock > wanted.lock; \
           uv pip install --no-deps --only-binary :all: --torch-backend cpu "$torch" ;; \
      index) cp requirements-serve.lock wanted.lock ;; \
      *) echo "TORCH_BACKEND is '$TORCH_BACKEND'; it must be cpu or index" >&2; exit 2 ;; \
    esac; \
    uv pip install --no-deps --only-binary :all: --require-hashes -r wanted.lock; \
    uv pip check; \
    find "$VIRTUAL_ENV" -name '*.a' -delete; \
    find "$VIRTUAL_ENV" -depth \( -path '*/site-packages/torch/include' \
      -o -path '*/site-packages/nvidia/*/include' -o -path '*/site-packages/sympy*/tests' \
      -o -path '*/site-packages/networkx*/tests' \) -exec rm -r {} +


FROM dependencies AS build

COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN python -m hatchling build --target wheel --directory dist \
    && uv pip install --no-deps --prefix /opt/service dist/*.whl


FROM python:3.11-slim-bookworm

# A name for the number: torch asks for the user's name when it makes a cache folder.
RUN groupadd --gid 10001 headwater \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
         --home-dir /var/lib/headwater --shell /usr/sbin/nologin headwater \
    && install --directory --owner 10001 --group 10001 /var/lib/headwater

COPY --from=dependencies /opt/headwater /opt/headwater
COPY --from=build /opt/service /opt/headwater

# HF_HOME: a backbone named by hub id is downloaded once, into the volume.
ENV PATH=/opt/headwater/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/headwater/huggingface \
    HEADWATER_ADMIN__HOST=0.0.0.0 \
    HEADWATER_ADMIN__PORT=8321 \
    HEADWATER_STORAGE__ROOT=/var/lib/headwater

WORKDIR /var/lib/headwater
VOLUME /var/lib/headwater
USER 10001:10001
EXPOSE 8321
STOPSIGNAL SIGTERM

# http.client rather than urllib: it never asks a proxy for 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; admin = http.client.HTTPConnection('127.0.0.1', int(os.environ['HEADWATER_ADMIN__PORT']), timeout=4); admin.request('GET', '/livez'); sys.exit(admin.getresponse().status != 200)"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Headwater" \
      org.opencontainers.image.description="A streaming recommendation service that learns from user behaviour as it flows through Kafka." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/headwater-dev/headwater" \
      org.opencontainers.image.documentation="https://github.com/headwater-dev/headwater/tree/main/docs" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

ENTRYPOINT ["headwater"]
CMD ["serve"]
