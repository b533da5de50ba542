# Tenora in a container: one base, the adapters of one store, port 8000.
#
#   docker build -t tenora .                                     CPU
#   docker build -t tenora --build-arg DEVICE=cuda .             GPU (run it with --gpus all)
#
# TORCH_INDEX_URL names a wheel index to take torch from, where the default index has no build for your device
# (on Linux the default build carries CUDA, which works on a CPU too but is large).
FROM python:3.11-slim AS build
ARG TORCH_INDEX_URL=
WORKDIR /src
RUN python -m venv /opt/tenora
# torch first and alone: it is the largest layer and changes least.
COPY pyproject.toml README.md LICENSE ./
RUN /opt/tenora/bin/pip install --no-cache-dir --disable-pip-version-check \
    ${TORCH_INDEX_URL:+--extra-index-url ${TORCH_INDEX_URL}} \
    "$(python -c 'import tomllib; print(next(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d.startswith("torch")))')"
COPY adapters adapters
COPY service service
COPY training training
COPY recipes recipes
COPY models models
RUN /opt/tenora/bin/pip install --no-cache-dir --disable-pip-version-check '.[train,postgres]'
# The CPU kernels, so that the image needs no compiler. What runs is chosen by the CPU that it runs on.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* && \
    cd / && /opt/tenora/bin/python -m adapters.native.build

FROM python:3.11-slim
ARG DEVICE=cpu
# Triton, which computes the adapters on a GPU, builds what starts its kernels.
RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --create-home --uid 1000 tenora && mkdir -p /data/store /data/models && chown -R tenora /data
COPY --from=build /opt/tenora /opt/tenora
ENV PATH=/opt/tenora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/models \
    TENORA_STORE=/data/store \
    TENORA_HOST=0.0.0.0 \
    TENORA_PORT=8000 \
    TENORA_DEVICE=${DEVICE}
USER tenora
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"TENORA_PORT\"]}/readyz', timeout=2)"]
# Bound beyond loopback, the server wants keys: -e TENORA_API_KEYS='{"sk-…": "acme"}'
CMD ["tenora", "serve"]
