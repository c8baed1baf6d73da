# The nodes' image, for Kubernetes (jobs/k8s/):  docker build -t REGISTRY/bend-ray:0.1.0 . && docker push ...
#
# From Python's image, not rayproject/ray's: Ray is a wheel, and torch's wheel brings its CUDA libraries; a second CUDA
# and an Anaconda would only be gigabytes to pull. The host needs NVIDIA's driver 580 or later (CUDA 13).
FROM python:3.11-slim-bookworm

# KubeRay asks for a node's health with wget; torch.compile needs a C++ compiler. Debian's newest are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 ray

# What bend_ray needs, in a layer that changes only with pyproject.toml: installed for an empty package.
WORKDIR /home/ray/bend_ray
ARG RAY_VERSION=2.60.0
COPY pyproject.toml README.md LICENSE ./
RUN mkdir bend_ray \
 && touch bend_ray/__init__.py \
 && echo '__version__ = "0"' > bend_ray/version.py \
 && pip install --no-cache-dir . "ray==${RAY_VERSION}" \
 && pip uninstall --yes bend-ray \
 && rm -rf bend_ray build ./*.egg-info

COPY bend_ray bend_ray
RUN pip install --no-cache-dir --no-deps --editable .
COPY jobs jobs

USER 1000
WORKDIR /home/ray
