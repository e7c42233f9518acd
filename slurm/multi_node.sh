#!/usr/bin/env bash
# One experiment on all GPUs of several nodes:
#   sbatch slurm/multi_node.sh                                  the settings below
#   MODEL=chronos2 EXPERIMENT=training sbatch --nodes=4 slurm/multi_node.sh
# Submit from the project's folder, after `make run` has made its environment there; every node
# must see it and data_root under the same path. Kedro runs once, on the first node; only its
# training uses the others. What follows the script's name goes to `kedro run`.
#SBATCH --job-name=nocturnal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
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
ENV=${ENV:-slurm}                         # conf/$ENV
PARAMS=${PARAMS:-}                        # of `kedro run --params`

# Jobs that prepare data would be waited for by these GPUs.
PARAMS="cluster.kind=embedded${PARAMS:+,$PARAMS}"
# srun, which starts the training on every node, would take one core a node.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

source "${SLURM_SUBMIT_DIR:-.}/slurm/_run.sh"
run_kedro "$@"
