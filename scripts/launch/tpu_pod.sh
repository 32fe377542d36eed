#!/usr/bin/env bash
# The same command on every host of a TPU pod; JAX finds the others by the pod's metadata.
#
#   TPU=my-pod ZONE=us-east5-a scripts/launch/tpu_pod.sh --config stage1 --workdir /mnt/shared/stage1
#
# imprint_jax must be installed on the hosts: pip install 'imprint_jax[tpu]'. Records and work folder
# must be paths that all hosts see (a mounted bucket or file store); gs:// addresses are not read.
#
# When the run was stopped, or a host or its connection was lost, it is started again as soon as the pod
# is READY: at once after maintenance, and after a preemption when somebody, or a queued resource, has
# made a pod of this name again. The wait before it (WAIT, 120 seconds) lets processes of the start
# before end. Wrong input (2), a failure (1) and Ctrl-C (130) end it.
set -uo pipefail
: "${TPU:?the name of the pod}" "${ZONE:?the zone it is in}"
printf -v arguments '%q ' "$@"
while true; do
    gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all \
        --command "imprint train --distributed --resume $arguments"
    code=$?
    case $code in 0 | 1 | 2 | 130) exit "$code" ;; esac
    echo "Exit code $code: starting again when $TPU is ready." >&2
    until
        sleep "${WAIT:-120}"
        [ "$(gcloud compute tpus tpu-vm describe "$TPU" --zone "$ZONE" --format 'value(state)')" = READY ]
    do :; done
done
