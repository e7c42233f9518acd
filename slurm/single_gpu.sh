#!/usr/bin/env bash
# One experiment on one GPU of a SLURM cluster:
#   sbatch slurm/single_gpu.sh                                  the settings below
#   MODEL=ttm PARAMS="sources=azt1d,raw_root=/data/raw" sbatch slurm/single_gpu.sh
# Submit from the project's folder, after `make run` has made its environment there. What follows
# the script's name goes to `kedro run`.
#SBATCH --job-name=nocturnal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

set -euo pipefail

EXPERIMENT=${EXPERIMENT:-nocturnal_point} # or a stage, such as training
MODEL=${MODEL:-ttm}                       # several with spaces between them
ENV=${ENV:-single_gpu}                    # conf/$ENV
PARAMS=${PARAMS:-}                        # of `kedro run --params`

source "${SLURM_SUBMIT_DIR:-.}/slurm/_run.sh"
run_kedro "$@"
