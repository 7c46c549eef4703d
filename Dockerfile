# The command `ait` on a CPU, as a user without privileges:
#
#     docker build --tag ait .
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" ait fit photos --time 10m
#
# Inside, the current folder is /work; runs and downloaded data sets go there.
FROM python:3.13-slim AS build

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/ait \
    && /opt/ait/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu .

FROM python:3.13-slim

COPY --from=build /opt/ait /opt/ait
RUN useradd --create-home --uid 1000 ait \
    && mkdir /work \
    && chown ait:ait /work

# Caches are in folders that any user of `--user` can write to, also one without a home folder.
ENV PATH=/opt/ait/bin:$PATH \
    HOME=/work \
    HF_HOME=/work/.cache/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    PYTHONUNBUFFERED=1

USER 1000:1000
WORKDIR /work
ENTRYPOINT ["ait"]
CMD ["--help"]
