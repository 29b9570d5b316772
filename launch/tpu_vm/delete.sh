#!/usr/bin/env bash
# Deletes the TPU and everything on its hosts, and with it the cost: copy the model_dir away first.
# PROJECT=mine ZONE=us-central2-b TPU_NAME=tune launch/tpu_vm/delete.sh
set -euo pipefail
: "${PROJECT:?the Google Cloud project that pays}" "${ZONE:?e.g. us-central2-b}" "${TPU_NAME:?the name of the TPU}"

gcloud compute tpus tpu-vm delete "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" --quiet
