#!/usr/bin/env bash
# Looks at a partition and its queue, chooses GPUs, cores, memory and time, says why, and submits
# one of single_gpu.sh, multi_gpu.sh and multi_node.sh with them:
#   MODEL=chronos2 slurm/adaptive_resources.sh                  options of sbatch may follow
#   PARTITION=gpu slurm/adaptive_resources.sh --dry-run         says what it would submit
# Start it on a login node, in the project's folder. MODEL, EXPERIMENT, ENV and PARAMS are those of
# the script that is chosen.

set -euo pipefail

PARTITION=${PARTITION:-}          # the cluster's default
MOST_GPUS=${MOST_GPUS:-8}         # over all nodes
CORES_PER_GPU=${CORES_PER_GPU:-4} # at most
GB_PER_GPU=${GB_PER_GPU:-16}      # of the node's memory, at most
MINUTES=${MINUTES:-240}           # at most; a job that is cut goes on by itself
BUSY_MINUTES=${BUSY_MINUTES:-60}  # at most, where others wait

choose() {
    require_partition
    local nodes with all free name now whole cores mb waiting allowed
    nodes=$(sinfo --noheader --Node --partition="$PARTITION" --Format="NodeHost:64,StateCompact:20,\
Gres:200,GresUsed:200,CPUsState:40,Memory:20,AllocMem:20")
    read -r with all free name now whole cores mb < <(count_gpus <<<"$nodes")
    ((with)) || fail "partition '$PARTITION' has no GPUs; those of each:" \
        "$(sinfo --noheader --format='%R %G' | sort -u | paste -sd, | sed 's/,/, /g')."
    waiting=$(squeue --noheader --partition="$PARTITION" --states=PENDING --format=%r |
        grep -cE '^(Resources|Priority)' || true)
    echo "Partition $PARTITION: $with nodes with $all GPUs, $free of them free; jobs that wait: $waiting."

    gpus=1 machines=1 minutes=$MINUTES
    if ((now && !waiting)); then
        gpus=$(power_of_two $((now < MOST_GPUS ? now : MOST_GPUS)))
        machines=$(power_of_two $((MOST_GPUS / gpus < whole ? MOST_GPUS / gpus : whole)))
        say "$((gpus * machines)) GPUs" "nobody waits, and $name has $now to give; at most" \
            "$MOST_GPUS are wanted, and a power of two shares a batch evenly"
        ((machines == 1)) || say "$machines nodes" "$whole are free as a whole like $name"
    else
        minutes=$((BUSY_MINUTES < MINUTES ? BUSY_MINUTES : MINUTES))
        say "1 GPU" "what is free or becomes free is waited for: a small job fits into gaps"
    fi
    cores=$((cores * gpus)) mb=$((mb * gpus))
    say "$cores cores, $mb MB a node" "the GPUs' share of a node, at most $CORES_PER_GPU cores and" \
        "$GB_PER_GPU GB each"
    allowed=$(minutes_allowed)
    if [[ $allowed ]] && ((allowed < minutes)); then
        minutes=$allowed
        say "$minutes minutes" "the partition allows no more; a job that is cut goes on by itself"
    else
        say "$minutes minutes" "as set; a job that is cut goes on by itself"
    fi
    script=slurm/single_gpu.sh
    ((gpus == 1)) || script=slurm/multi_gpu.sh
    ((machines == 1)) || script=slurm/multi_node.sh
    options=(--partition="$PARTITION" --nodes="$machines" --gres="gpu:$gpus"
        --cpus-per-task="$cores" --mem="${mb}M" --time="$minutes")
}

require_partition() {
    local known
    command -v sinfo >/dev/null ||
        fail "there is no command 'sinfo' here. Start this on a login node of a SLURM cluster."
    known=$(sinfo --noheader --format=%P)
    PARTITION=${PARTITION:-$(sed -n 's/\*$//p' <<<"$known")}
    grep -qxF -- "$PARTITION" <<<"${known//\*/}" ||
        fail "unknown partition '$PARTITION'; known: $(paste -sd' ' <<<"${known//\*/}")." \
            "Set PARTITION to one of them."
}

# Nodes with GPUs, GPUs, free GPUs; of the node that has most to give: its name, how many, how many
# nodes like it are free as a whole, and a GPU's share of its cores and memory (MB).
count_gpus() {
    awk -v most_cores="$CORES_PER_GPU" -v most_mb="$((GB_PER_GPU * 1024))" '
        function gpus(text,   part, n, sum) { # "gpu:a100:4(S:0-1),gpu:v100:2" -> 6
            gsub(/\([^)]*\)/, "", text)
            for (n = split(text, part, ","); n; n--)
                if (part[n] ~ /^gpu:/) { sub(/.*:/, "", part[n]); sum += part[n] }
            return sum + 0
        }
        function least(a, b) { return a < b ? a : b }
        {
            own = gpus($3)
            if (!own) next
            split($5, core, "/") # allocated, idle, other, all
            share = least(most_cores, int(core[4] / own))
            cores = share ? share : 1
            mb = least(most_mb, int($6 / own))
            give = least(own - gpus($4), least(int(core[2] / cores), int(($6 - $7) / mb)))
            if ($2 !~ /^(idle|mix)[^*]*$/) give = 0
            kind = own " " cores " " mb
            whole[kind] += give == own
            with++; all += own; free += give
            if (with == 1 || give > best) { best = give; name = $1; best_kind = kind }
        }
        END {
            split(best_kind, part, " ")
            print with + 0, all + 0, free + 0, name, best + 0, whole[best_kind] + 0, part[2], part[3]
        }'
}

power_of_two() { # the largest that is not above, and at least 1
    local power=1
    while ((power * 2 <= $1)); do power=$((power * 2)); done
    echo "$power"
}

minutes_allowed() { # by the partition; nothing where it sets no limit
    scontrol show partition "$PARTITION" --oneliner | sed -nE 's/.* MaxTime=(\S+).*/\1/p' |
        awk -F'[-:]' 'NF == 4 { print $1 * 1440 + $2 * 60 + $3 } NF == 3 { print $1 * 60 + $2 }'
}

say() {
    local chosen=$1
    shift
    printf '  %-28s %s\n' "$chosen" "$*"
}

fail() {
    echo "Error: $*" >&2
    exit 1
}

dry=''
if [[ ${1:-} == --dry-run ]]; then
    dry=1
    shift
fi
choose
echo "sbatch ${options[*]} ${*:+$* }$script"
if [[ $dry ]]; then
    sbatch --test-only "${options[@]}" "$@" "$script"
else
    sbatch "${options[@]}" "$@" "$script"
fi
