#!/usr/bin/env bash
# Trains on all hosts and chips of the TPU; the arguments are flags of launch.train. 75: run it again.
# PROJECT=mine ZONE=us-central2-b TPU_NAME=tune NUM_HOSTS=1 launch/tpu_vm/run.sh \
#   --gin_file=configs/runs/digits_source.gin --model_dir=runs/digits_source
set -euo pipefail
: "${PROJECT:?the Google Cloud project that pays}" "${ZONE:?e.g. us-central2-b}" "${TPU_NAME:?the name of the TPU}"
: "${NUM_HOSTS:?1 for a TPU VM, more for a pod slice}" "${1:?name the run by flags of launch.train}"

if [ "$NUM_HOSTS" -gt 1 ]; then
  # TPUStrategy is one program, on worker 0, which drives the TensorFlow servers that the image runs on every host.
  # It must leave the chips to them.
  environment="TPU_LOAD_LIBRARY=0"
  tpu="$TPU_NAME"
else
  environment="NEXT_PLUGGABLE_DEVICE_USE_C_API=true"
  environment+=" TF_PLUGGABLE_DEVICE_LIBRARY_PATH=\$(echo .venv/lib/python3*/site-packages/libtpu/libtpu.so)"
  tpu=local
fi
flags="$(printf '%q ' --strategy=tpu --cluster=tpu "--tpu=$tpu" "$@")"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" --worker=0 \
  --command="cd regraft && TPU_NAME=$tpu $environment PYTHONUNBUFFERED=1 .venv/bin/python -m launch.train $flags"
