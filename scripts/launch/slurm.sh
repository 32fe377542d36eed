#!/usr/bin/env bash
# One process a GPU on N nodes; JAX finds the processes by SLURM's variables.
#
#   sbatch --nodes=1 --gpus-per-node=8 scripts/launch/slurm.sh --config stage1 --workdir /shared/stage1
#
# The work folder must be on a file system that all nodes share. SLURM sends SIGTERM two minutes before
# the time limit: the run saves and ends, and the job is queued again to go on.
#SBATCH --job-name=imprint
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
srun --kill-on-bad-exit=0 imprint train --distributed --resume "$@"
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
