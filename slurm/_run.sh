# Sourced by the scripts beside it: one `kedro run` that a pre-emption interrupts and does not end.
# shellcheck shell=bash

VENV=${VENV:-.venv}                   # where `make run` has installed the project
MOST_RESTARTS=${MOST_RESTARTS:-50}    # a job that gets nowhere is queued again so often

# Run $EXPERIMENT with $MODEL, $ENV, $PARAMS and the options given; where SLURM takes the machine
# back, let it save, and queue the job again: the same command goes on from the checkpoint.
run_kedro() {
    local kedro='' stopped='' woken='' code=0
    cd "${SLURM_SUBMIT_DIR:-.}" || return
    export DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
    trap 'stopped=1 woken=1; [[ -z $kedro ]] || kill -USR1 "$kedro" 2>/dev/null || true' USR1 TERM
    "$VENV/bin/kedro" run --pipelines="$EXPERIMENT" ${ENV:+--env="$ENV"} \
        --params="models=$MODEL${PARAMS:+,$PARAMS}" "$@" &
    kedro=$!
    while true; do # a signal ends `wait`, not what is waited for
        woken='' code=0
        wait "$kedro" || code=$?
        [[ $woken ]] || break
    done
    # Signals may reach the training alone (75: told to stop), or a Kedro that is elsewhere.
    if ((code == 75)) || { [[ $stopped ]] && ((code)); }; then
        queue_again
    fi
    return "$code"
}

queue_again() {
    # The last job of an array has the array's own number as its SLURM_JOB_ID.
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    job=${job:-$SLURM_JOB_ID}
    if [[ $(squeue --noheader --jobs="$job" --format=%T) != RUNNING ]]; then
        echo "Job $job was cancelled, or SLURM queues it again by itself." >&2
    elif ((${SLURM_RESTART_COUNT:-0} >= MOST_RESTARTS)); then
        echo "Job $job was queued again $MOST_RESTARTS times: not once more. Give it" \
            "more --time, or set MOST_RESTARTS." >&2
    else
        echo "Job $job is queued again and goes on from its last checkpoint." >&2
        scontrol requeue "$job"
    fi
}
