#!/usr/bin/env bash
# Copies the committed state of this repository to every host, and installs it there with TensorFlow for TPUs.
# PROJECT=mine ZONE=us-central2-b TPU_NAME=tune launch/tpu_vm/install.sh
set -euo pipefail
: "${PROJECT:?the Google Cloud project that pays}" "${ZONE:?e.g. us-central2-b}" "${TPU_NAME:?the name of the TPU}"

# The newest on PyPI; there is none of 2.21, which pyproject.toml asks for: see README.md.
tensorflow_tpu=tensorflow-tpu==2.20.0
repository="$(cd "$(dirname "$0")/../.." && pwd)"
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
git -C "$repository" archive --format=tar.gz --output="$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:regraft.tar.gz" \
  --project="$PROJECT" --zone="$ZONE" --worker=all
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="
  set -e
  sudo apt-get install --yes --quiet python3-venv
  mkdir -p regraft && tar -xzf regraft.tar.gz -C regraft && cd regraft
  python3 -m venv .venv
  sed -E '/^(tensorflow|tensorboard|tf-keras)==/d' requirements.lock > requirements-tpu.lock
  .venv/bin/python -m pip install --quiet --requirement requirements-tpu.lock $tensorflow_tpu \
    --find-links https://storage.googleapis.com/libtpu-tf-releases/index.html
"
