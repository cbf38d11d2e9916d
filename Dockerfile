# syntax=docker/dockerfile:1
# Two images: `cpu` (the default), with a compiler for the kernels of docs/decisions/0017, and `cuda`, whose CUDA
# libraries come with torch; the driver is the host's. docs/deploy.md says how they are run.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/inferapi
ENV PATH=/opt/inferapi/bin:$PATH
WORKDIR /src
COPY constraints.txt ./

# torch alone, so that the layer stays when the code changes. pip's own index has the build with CUDA, which runs without a
# GPU, and is several GB larger than the CPU build of PyTorch's own index. Where it is asked for by version alone, pip
# prefers the CPU build, whose version has a suffix, to the other index's.
FROM packages AS cpu-packages
ARG TORCH_CPU_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ${TORCH_CPU_INDEX:+--extra-index-url "${TORCH_CPU_INDEX}"} \
        "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md ./
COPY src ./src
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt '.[otel]'

FROM packages AS cuda-packages
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md ./
COPY src ./src
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt '.[bitsandbytes,otel]'

FROM ${PYTHON_IMAGE} AS runtime
# Named volumes that are mounted there take owner and mode from these folders. The kernels' cache must be the server's
# alone, and executable, which /tmp commonly is not.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/inferapi --shell /usr/sbin/nologin inferapi \
    && install -d -o inferapi -g inferapi -m 0700 /var/lib/inferapi /var/lib/inferapi/hub /var/cache/inferapi \
    && install -d -m 0755 /srv/models
ENV PATH=/opt/inferapi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/var/cache \
    XDG_DATA_HOME=/var/lib \
    HF_HOME=/var/lib/inferapi/hub \
    INFERAPI_MODELS_DIR=/srv/models
WORKDIR /var/lib/inferapi
EXPOSE 8000
# Alive is enough: a model that takes long to load is no reason to start anew.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('INFERAPI_PORT') or 8000), timeout=2); c.request('GET', '/health/live'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["inferapi"]
CMD ["serve"]

FROM runtime AS cuda
COPY --from=cuda-packages /opt/inferapi /opt/inferapi
USER 10001:10001

FROM runtime AS cpu
# Debian keeps no older version of a package: one that is pinned can soon not be had.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=cpu-packages /opt/inferapi /opt/inferapi
USER 10001:10001
