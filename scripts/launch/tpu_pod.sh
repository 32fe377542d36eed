#!/usr/bin/env bash
# The same command on every host of a TPU pod; JAX finds the others by the pod's metadata.
#
#   TPU=my-pod ZONE=us-east5-a scripts/launch/tpu_pod.sh --config stage1 --workdir /mnt/shared/stage1
#
# imprint_jax must be installed on the hosts: pip install 'imprint_jax[tpu]'. Records and work folder
# must be paths that all hosts see (a mounted bucket or file store); gs:// addresses are not read.
set -euo pipefail
: "${TPU:?the pod\'s name}" "${ZONE:?its zone}"
printf -v arguments '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all \
    --command "imprint train --distributed --resume $arguments"
