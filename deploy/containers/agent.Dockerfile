# A device's agent: docker build --file deploy/containers/agent.Dockerfile --tag spliteasy-agent:0.2.0 .
#   docker run --user "$(id -u):$(id -g)" --volume "$PWD/phone-1:/state" --volume "$PWD/photos:/data:ro" \
#     spliteasy-agent:0.2.0 agent --enrolment /state/phone-1.enrol --state /state/run --data /data
# It runs as the user whose files those are: an enrolment is readable by its owner only. Data that is a
# module of your own: build FROM this image and copy it into /opt/data, which is on Python's path.
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/spliteasy
RUN /opt/spliteasy/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
WORKDIR /source
COPY . .
RUN /opt/spliteasy/bin/pip install ".[agent,images,fast,metrics]"

FROM python:3.11.13-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home spliteasy
COPY --from=build /opt/spliteasy /opt/spliteasy
ENV PATH=/opt/spliteasy/bin:$PATH OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 HOME=/tmp LOGNAME=spliteasy PYTHONPATH=/opt/data
USER 10001:10001
WORKDIR /tmp
VOLUME /state
# SIGTERM stops after the step at hand; started again it goes on from there.
STOPSIGNAL SIGTERM
ENTRYPOINT ["spliteasy"]
CMD ["agent", "--help"]
