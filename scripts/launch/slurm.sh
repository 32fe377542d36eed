#!/usr/bin/env bash
# One process a GPU on N nodes; JAX finds the processes by SLURM's variables.
#
#   sbatch --nodes=1 --gpus-per-node=8 scripts/launch/slurm.sh --config stage1 --workdir /shared/stage1
#
# The work folder must be on a file system that all nodes share. SLURM sends SIGTERM two minutes before
# the time limit: the run saves and ends with 143, and the job is queued again to go on. So it is when a
# process was killed (137) or ended as another had (134), up to MAX_RESTARTS times (20) in all; a lost
# node makes SLURM itself queue the job again. Wrong input (2), a failure (1) and Ctrl-C (130) end it.
#SBATCH --job-name=imprint
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
srun --kill-on-bad-exit=0 imprint train --distributed --resume "$@"
code=$?
restarts=${SLURM_RESTART_COUNT:-0}
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$code" -gt 128 ] && [ "$code" -ne 130 ]; then
    if [ "$restarts" -lt "${MAX_RESTARTS:-20}" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "Exit code $code after $restarts restarts: not queued again." >&2
    fi
fi
exit "$code"
