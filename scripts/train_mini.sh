#!/usr/bin/env bash
# Both stages of mini, trained on in the time there is, from the data/records that
# data/recipes/mini144.sh makes:
#
#   scripts/train_mini.sh --minutes 9 [--config.batch_size=64 ...]
#
# Makes runs/mini144_stage1 and runs/mini144_stage2; the same command again goes on where it stopped.
set -euo pipefail
cores=$(nproc)
workers=$((cores > 4 ? cores - 2 : 0)) # processes that make batches
exec python "$(dirname "$0")/train_against_clock.py" mini144_stage1 mini144_stage2 \
    --config.data.num_workers=$workers "$@"
