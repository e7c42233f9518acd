#!/usr/bin/env bash
# One experiment on several GPUs of one node:
#   sbatch slurm/multi_gpu.sh                                   the settings below
#   MODEL=chronos2 ENV=multi_gpu_fsdp sbatch --gres=gpu:8 slurm/multi_gpu.sh
# Submit from the project's folder, after `make run` has made its environment there. What follows
# the script's name goes to `kedro run`.
#SBATCH --job-name=nocturnal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gres=gpu:4
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

set -euo pipefail

EXPERIMENT=${EXPERIMENT:-nocturnal_point} # or a stage, such as training
MODEL=${MODEL:-ttm}                       # several with spaces between them
ENV=${ENV:-multi_gpu}                     # or multi_gpu_fsdp, multi_gpu_deepspeed: conf/$ENV
PARAMS=${PARAMS:-}                        # of `kedro run --params`

source "${SLURM_SUBMIT_DIR:-.}/slurm/_run.sh"
run_kedro "$@"
