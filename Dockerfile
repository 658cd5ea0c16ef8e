# Pixwarden's images. BuildKit, Docker's default builder, is needed.
#
#     docker build --target cpu -t pixwarden:cpu .      the default target; amd64 and arm64
#     docker build --target cuda -t pixwarden:cuda .    amd64; runs with an NVIDIA driver of branch 580 or later
#
# The tags name exact releases, but a tag can be moved. The digests that cannot were out of reach where this file was
# written; `docker buildx imagetools inspect IMAGE` tells them, and `IMAGE@sha256:...` pins one.

# The libraries below are built for glibc 2.28 at the latest. The program is linked against the builder's, 2.36, which
# must be no newer than that of either final image.
FROM rust:1.95.0-bookworm AS builder
# libjpeg-turbo is compiled from source: cmake builds it, nasm assembles its fast paths.
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake nasm \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# No more than cargo reads, so that a change elsewhere compiles nothing.
COPY Cargo.toml Cargo.lock ./
COPY migrations migrations
COPY src src
# Crates and compiled dependencies stay in the builder's cache, not in a layer; after a change only the program itself
# is compiled, and then all of it optimised together. A cache belongs to one build at a time, as cargo would otherwise
# wait for its own locks.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release --bin pixwarden \
    && install -D --mode=0755 target/release/pixwarden /out/pixwarden

# ONNX Runtime comes as a shared library inside its Python wheels. No Python gets into the final images.
FROM python:3.12.12-slim-bookworm AS runtime-lib
ARG ONNXRUNTIME=1.32.0
WORKDIR /wheel
RUN pip download --no-cache-dir --no-deps --only-binary=:all: --dest . "onnxruntime==${ONNXRUNTIME}" \
    && python -m zipfile -e onnxruntime-*.whl . \
    && install -D --mode=0755 "onnxruntime/capi/libonnxruntime.so.${ONNXRUNTIME}" /out/lib/libonnxruntime.so \
    && install -D --mode=0644 --target-directory=/out/doc onnxruntime/LICENSE onnxruntime/ThirdPartyNotices.txt

# The GPU wheel that Pixwarden has been run with; from 1.27 on they are for CUDA 13. The library looks for its providers
# beside itself. TensorRT's is left out: Pixwarden does not ask for it, and what that one needs would be missing.
FROM python:3.12.12-slim-bookworm AS runtime-lib-cuda
ARG ONNXRUNTIME_GPU=1.31.1
WORKDIR /wheel
RUN pip download --no-cache-dir --no-deps --only-binary=:all: --dest . "onnxruntime-gpu==${ONNXRUNTIME_GPU}" \
    && python -m zipfile -e onnxruntime_gpu-*.whl . \
    && install -D --mode=0755 "onnxruntime/capi/libonnxruntime.so.${ONNXRUNTIME_GPU}" /out/lib/libonnxruntime.so \
    && install --mode=0755 --target-directory=/out/lib \
        onnxruntime/capi/libonnxruntime_providers_shared.so onnxruntime/capi/libonnxruntime_providers_cuda.so \
    && install -D --mode=0644 --target-directory=/out/doc onnxruntime/LICENSE onnxruntime/ThirdPartyNotices.txt

# CUDA 13.0 rather than a later 13: the provider needs no symbol beyond it, and it asks for the oldest driver.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=runtime-lib-cuda /out/doc /usr/local/share/doc/onnxruntime
COPY LICENSE-APACHE LICENSE-MIT /usr/local/share/doc/pixwarden/
# The program looks for lib/ and models/ beside itself.
COPY --from=runtime-lib-cuda /out/lib /usr/local/bin/lib
COPY models/cifake-32 /usr/local/bin/models/cifake-32
COPY --from=builder /out/pixwarden /usr/local/bin/pixwarden
# A pixwarden.toml in the working directory is read; mount one here.
WORKDIR /etc/pixwarden
# By number, so that a cluster can see that it is not root.
USER 10001:10001
ENTRYPOINT ["pixwarden"]

# Last, and so what a build without --target makes.
FROM debian:bookworm-20260824-slim AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=runtime-lib /out/doc /usr/local/share/doc/onnxruntime
COPY LICENSE-APACHE LICENSE-MIT /usr/local/share/doc/pixwarden/
# As in the CUDA image.
COPY --from=runtime-lib /out/lib /usr/local/bin/lib
COPY models/cifake-32 /usr/local/bin/models/cifake-32
COPY --from=builder /out/pixwarden /usr/local/bin/pixwarden
WORKDIR /etc/pixwarden
USER 10001:10001
ENTRYPOINT ["pixwarden"]
