#!/usr/bin/env bash
# Creates a TPU VM, or a pod slice with several hosts. SPOT=1 takes one that may be taken back.
# PROJECT=mine ZONE=us-central2-b TPU_NAME=tune ACCELERATOR_TYPE=v4-8 RUNTIME_VERSION=tpu-ubuntu2204-base launch/tpu_vm/create.sh
set -euo pipefail
: "${PROJECT:?the Google Cloud project that pays}" "${ZONE:?e.g. us-central2-b}" "${TPU_NAME:?a name for the TPU}"
: "${ACCELERATOR_TYPE:?e.g. v4-8, or v4-32 for four hosts}"
: "${RUNTIME_VERSION:?tpu-ubuntu2204-base for one host, tpu-vm-tf-2.20.0-pod-pjrt for several}"

gcloud compute tpus tpu-vm create "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" \
  --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" ${SPOT:+--spot}
