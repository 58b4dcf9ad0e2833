# A worker: docker build --file deploy/containers/worker.Dockerfile --tag spliteasy-worker:0.2.0 .
# --build-arg TORCH_INDEX=URL takes PyTorch from another index, such as its own for CPU-only wheels. The default
# wheels bring CUDA along, for workers on a GPU (gpu.yaml).
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/spliteasy
RUN /opt/spliteasy/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
WORKDIR /source
COPY . .
RUN /opt/spliteasy/bin/pip install ".[worker,fast,metrics]"

FROM python:3.11.13-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home spliteasy
COPY --from=build /opt/spliteasy /opt/spliteasy
# One thread a worker: it is part of what makes a step's bits, and several workers share a machine.
ENV PATH=/opt/spliteasy/bin:$PATH OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 HOME=/tmp LOGNAME=spliteasy
USER 10001:10001
WORKDIR /tmp
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
# SIGTERM drains; where broker and store are comes by SPLITEASY_BROKER and SPLITEASY_STORE.
STOPSIGNAL SIGTERM
ENTRYPOINT ["spliteasy"]
CMD ["worker", "--metrics-host", "0.0.0.0", "--metrics-port", "9464"]
