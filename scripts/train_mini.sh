#!/usr/bin/env bash
# Both stages of mini, trained in the time there is, from data/records of this folder:
#
#   scripts/train_mini.sh --minutes 9 [--config.batch_size=64 ...]
#
# Makes runs/mini_stage1 and runs/mini_stage2; the same command again goes on where it stopped.
set -euo pipefail
cores=$(nproc)
workers=$((cores > 4 ? cores - 2 : 0)) # processes that make batches
exec python "$(dirname "$0")/train_against_clock.py" mini_stage1 mini_stage2 \
    --config.data.num_workers=$workers "$@"
