#!/usr/bin/env bash
# An experiment with several models and seeds, a job for each of them:
#   MODELS="ttm chronos2" SEEDS="1 2 3" slurm/sweep.sh          options of sbatch may follow
# Start it on a login node, in the project's folder. The data are prepared once, by a job without a
# GPU, in $ROOT/prepared. Then each job of an array trains, forecasts and scores one model with one
# seed, and keeps what it makes in $ROOT/MODEL-SEED, where the data are links to the ones prepared.
#SBATCH --job-name=nocturnal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

set -euo pipefail

EXPERIMENT=${EXPERIMENT:-nocturnal_point}
MODELS=${MODELS:-ttm chronos2}
SEEDS=${SEEDS:-1 2 3}
ENV=${ENV:-single_gpu}      # conf/$ENV
PARAMS=${PARAMS:-}          # of `kedro run --params`
ROOT=${ROOT:-data/sweep}    # one for each choice of data and parameters
AT_ONCE=${AT_ONCE:-8}       # jobs of the array

read -ra models <<<"$MODELS"
read -ra seeds <<<"$SEEDS"

submit() {
    local prepare train cells=$((${#models[@]} * ${#seeds[@]}))
    prepare=$(EXPERIMENT=data_processing MODEL=$MODELS \
        PARAMS="${PARAMS:+$PARAMS,}data_root=$ROOT/prepared" \
        sbatch --parsable "$@" --gres=none slurm/single_gpu.sh)
    train=$(sbatch --parsable "$@" --array="0-$((cells - 1))%$AT_ONCE" \
        --dependency="afterok:$prepare" --kill-on-invalid-dep=yes slurm/sweep.sh)
    echo "Job $prepare prepares the data, then the array $train trains $cells models, at most" \
        "$AT_ONCE at once. Results: $ROOT/MODEL-SEED"
}

train_one() {
    local MODEL=${models[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}
    local seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}
    local kept="$ROOT/$MODEL-$seed"
    mkdir -p "$kept"
    ln -sfn ../prepared/03_primary ../prepared/05_model_input "$kept"
    cp -r "$ROOT/prepared/08_reporting" "$kept" # the run's record there is written on
    PARAMS="${PARAMS:+$PARAMS,}data_root=$kept,training.seed=$seed"
    run_kedro --tags=training,evaluation,reporting
}

export EXPERIMENT MODELS SEEDS ENV PARAMS ROOT AT_ONCE
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    submit "$@"
else
    source "${SLURM_SUBMIT_DIR:-.}/slurm/_run.sh"
    cd "${SLURM_SUBMIT_DIR:-.}"
    train_one
fi
