#!/usr/bin/env bash
# One experiment on one GPU of a SLURM cluster:
#   sbatch slurm/single_gpu.sh                                  the defaults below
#   MODELS="ttm" PARAMS="sources=azt1d" sbatch slurm/single_gpu.sh
# Submit from the project's folder, after `make run` has made its environment there.
#SBATCH --job-name=nocturnal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log

set -euo pipefail

EXPERIMENT=${EXPERIMENT:-nocturnal_point}
KEDRO_ENVIRONMENT=${KEDRO_ENVIRONMENT:-single_gpu}
MODELS=${MODELS:-"ttm chronos2"}
PARAMS=${PARAMS:-}

cd "${SLURM_SUBMIT_DIR:-.}"
export DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
exec .venv/bin/kedro run --pipelines="$EXPERIMENT" --env="$KEDRO_ENVIRONMENT" \
    --params="models=$MODELS${PARAMS:+,$PARAMS}"
