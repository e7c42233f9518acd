#!/usr/bin/env bash
# An experiment or a sweep, its trainings shared out to many jobs, and one report:
#   MODELS="ttm chronos2" SEEDS="1 2 3" slurm/sweep.sh          options of sbatch may follow
#   EXPERIMENT=ablation MODELS=ttm JOBS=16 slurm/sweep.sh
# Start it on a login node, in the project's folder. A job without a GPU prepares the data in
# $ROOT/prepared. Then each job of an array trains its part into the store there: one model with one
# seed, or of a sweep its share of the cells. When all have ended well, a last job finds every model
# trained; it forecasts, scores and reports. The same command again goes on with what is there.
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

EXPERIMENT=${EXPERIMENT:-nocturnal_point} # or a sweep, such as ablation
MODELS=${MODELS:-ttm chronos2}
SEEDS=${SEEDS:-1 2 3}
ENV=${ENV:-single_gpu}      # conf/$ENV
PARAMS=${PARAMS:-}          # of `kedro run --params`
ROOT=${ROOT:-data/sweep}    # one for each choice of data and parameters
JOBS=${JOBS:-8}             # parts of a sweep's cells; else each model with each seed is one
AT_ONCE=${AT_ONCE:-8}       # jobs of the array

read -ra models <<<"$MODELS"
read -ra seeds <<<"$SEEDS"
together="${PARAMS:+$PARAMS,}seeds=$SEEDS,data_root=$ROOT/prepared"

submit() {
    local parts=$((${#models[@]} * ${#seeds[@]})) prepare train finish
    ! is_sweep || parts=$JOBS
    prepare=$(MODEL=$MODELS PARAMS=$together \
        sbatch --parsable "$@" --gres=none slurm/single_gpu.sh --tags=data_processing)
    train=$(after "$prepare" "$@" --array="1-$parts%$AT_ONCE" slurm/sweep.sh)
    finish=$(MODEL=$MODELS PARAMS=$together \
        after "$train" "$@" slurm/single_gpu.sh --tags=training,evaluation,reporting)
    echo "Job $prepare prepares the data, the array $train trains in $parts parts, at most $AT_ONCE" \
        "at once, and job $finish takes what they made, and reports:" \
        "$ROOT/prepared/08_reporting/$EXPERIMENT"
}

after() { # the options that follow, as soon as this job has ended well
    sbatch --parsable --dependency="afterok:$1" --kill-on-invalid-dep=yes "${@:2}"
}

is_sweep() {
    [[ -e src/nocturnal_kedro/sweeps/$EXPERIMENT.py ]]
}

# What is shared lies in $ROOT/prepared; what a run writes of itself, in a folder of its own.
train_part() {
    local part="$ROOT/parts/$SLURM_ARRAY_TASK_ID" prepared shared
    prepared=$(realpath "$ROOT/prepared")
    for shared in 03_primary 05_model_input 06_models/trained "06_models/$EXPERIMENT/unfinished" \
        07_model_output/answers; do
        mkdir -p "$prepared/$shared" "$(dirname "$part/$shared")"
        ln -sfn "$prepared/$shared" "$part/$shared"
    done
    PARAMS="${PARAMS:+$PARAMS,}data_root=$part"
    if is_sweep; then
        MODEL=$MODELS
        PARAMS+=",seeds=$SEEDS,share=$SLURM_ARRAY_TASK_ID/$JOBS"
        train
    else
        local place=$((SLURM_ARRAY_TASK_ID - 1))
        MODEL=${models[place / ${#seeds[@]}]}
        PARAMS+=",seeds=${seeds[place % ${#seeds[@]}]}"
        if ((place)); then
            train --namespaces="$EXPERIMENT.$MODEL"
        else
            train # and every baseline
        fi
    fi
}

# Parts may have trainings in common: one does them, the others wait, and take what it has made.
train() {
    local code held
    while true; do
        code=0
        run_kedro --tags=training "$@" || code=$?
        held=$(tail -n 1 /dev/stderr | # the log
            sed -n "s/^Error: another run is training .*: '\(.*\)' is in use\..*/\1/p")
        [[ $held ]] || return "$code"
        echo "Part $SLURM_ARRAY_TASK_ID waits for that training." >&2
        trap 'queue_again; exit 75' USR1 TERM
        while [[ -e $held ]] && ! flock --nonblock "$held/lock" true; do
            sleep 2
        done
    done
}

export EXPERIMENT MODELS SEEDS ENV PARAMS ROOT JOBS AT_ONCE
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    submit "$@"
else
    source "${SLURM_SUBMIT_DIR:-.}/slurm/_run.sh"
    cd "${SLURM_SUBMIT_DIR:-.}"
    train_part
fi
