#!/bin/bash
# Make a dataset with a job array: each task reads one part of the text, then a dependent job merges the parts.
#
#   sbatch --array=1-8 slurm/prepare.sh --source DUMP --wikidata5m FOLDER --tokenizer FOLDER --out FOLDER
#
# Arguments after the script's name go to `trelm prepare`; relative paths start at TRELM_HOME. Submit only the array:
# its first task submits the merge, which retries failed parts before it merges. Override any #SBATCH line on sbatch's
# command line; the merge and the retries get the same resources. See docs/slurm.md.
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

script=prepare
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file, so $0 is no help
[[ -f $TRELM_HOME/slurm/lib.sh ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"
export TRELM_HOME

# Export a variable before sbatch to change it.
TRELM_RETRIES=${TRELM_RETRIES:-3}  # how many times missing parts are retried
TRELM_PARTS=${TRELM_PARTS:-}       # number of parts; needed only if the array is not 1-N

# This script runs as three kinds of job: the array, the merge (not an array), and retry arrays (TRELM_MERGE_JOB is set
# to the merge that submitted them).
main() {
    [[ $TRELM_RETRIES =~ ^[0-9]+$ ]] || fail "TRELM_RETRIES must be a whole number, got '$TRELM_RETRIES'"
    [[ $TRELM_PARTS =~ ^([1-9][0-9]*)?$ ]] || fail "TRELM_PARTS must be a positive number, got '$TRELM_PARTS'"
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        read_part "$@"
    else
        merge "$@"
    fi
}

# trelm_prepare OPTION...: runs `trelm prepare` as one job step.
trelm_prepare() (on_nodes --quiet -- "$python" -m trelm_ds prepare --workers "$cpus" "$@")

# --- A task of the array ---
read_part() {
    local part=$SLURM_ARRAY_TASK_ID code=0
    if [[ -z $TRELM_PARTS ]]; then
        TRELM_PARTS=$SLURM_ARRAY_TASK_MAX
        # shellcheck disable=SC2153  # set by Slurm
        ((SLURM_ARRAY_TASK_MIN == 1 && SLURM_ARRAY_TASK_COUNT == TRELM_PARTS)) ||
            fail "the array must be 1-N, such as --array=1-8; for some of N parts set TRELM_PARTS=N"
    fi
    ((part >= 1 && part <= TRELM_PARTS)) || fail "no part $part of $TRELM_PARTS: correct --array or TRELM_PARTS"
    if ((part == SLURM_ARRAY_TASK_MIN)); then
        ensure_merge "$@" || exit  # a mistake in the options ends the job here, before anything is queued
    fi
    trelm_prepare "$@" --part "$part/$TRELM_PARTS" || code=$?
    ((code == 0)) || say "part $part of $TRELM_PARTS failed (exit code $code)"
    # Every task ensures it, in case the first one was killed before it could; not after a user error (2).
    ((code == 2)) || ensure_merge "$@" || true
    exit "$code"
}

# Ensures that exactly one merge waits for this array, however often tasks are requeued or killed. The queue is the
# record: if two tasks submit at the same time, the one with the younger job cancels it.
ensure_merge() {
    [[ -z ${TRELM_MERGE_JOB:-} ]] || return 0
    local name=prepare-merge-$SLURM_ARRAY_JOB_ID oldest mine
    oldest=$(oldest_job "$name") || return
    [[ -z $oldest ]] || return 0
    trelm_prepare "$@" --missing-parts "$TRELM_PARTS" >/dev/null || return
    mine=$(submit_again --job-name="$name" --output="$(log_folder)/%x.log" \
        --dependency="afterany:$SLURM_ARRAY_JOB_ID" -- "$@") || fail "the merge could not be submitted"
    oldest=$(oldest_job "$name") || return
    if [[ $oldest == "$mine" ]]; then
        say "job $mine ($name) merges the $TRELM_PARTS parts after this array"
    else
        scancel "$mine"
    fi
}

# --- The merge ---
merge() {
    local missing array oldest round=${SLURM_RESTART_COUNT:-0} retries=prepare-retry-$SLURM_JOB_ID
    [[ -n $TRELM_PARTS ]] || fail "submit it as an array, such as 'sbatch --array=1-8 slurm/prepare.sh ...'"
    oldest=$(oldest_job "$SLURM_JOB_NAME")
    if [[ $SLURM_JOB_NAME == prepare-merge-* && $oldest != "$SLURM_JOB_ID" ]]; then
        say "job $oldest does it"
        exit 0
    fi
    missing=$(trelm_prepare "$@" --missing-parts "$TRELM_PARTS")
    array=$(oldest_job "$retries")  # already queued if this job was killed before it could wait for it
    if [[ -z $missing && -z $array ]]; then
        trelm_prepare "$@" --merge
        exit 0
    fi
    if [[ -z $array ]]; then
        ((round < TRELM_RETRIES)) ||
            fail "parts $missing of $TRELM_PARTS are missing after $round retries: see their logs, then submit the array again"
        array=$(TRELM_MERGE_JOB=$SLURM_JOB_ID submit_again --job-name="$retries" --output="$(log_folder)/%x-%A_%a.log" \
            --array="$missing" -- "$@") || fail "parts $missing of $TRELM_PARTS are missing and could not be submitted again"
        say "parts $missing of $TRELM_PARTS are missing: array $array tries again, $((round + 1)) of $TRELM_RETRIES"
    fi
    # Requeue this job behind the array. It keeps its number, so jobs that depend on it keep waiting.
    trap '' TERM  # Slurm sends TERM to a requeued script; the update below must still run
    scontrol requeue "$SLURM_JOB_ID" || fail "cannot be requeued: submit the array again"
    scontrol update "jobid=$SLURM_JOB_ID" "dependency=afterany:$array"
    exit 1
}

# --- Slurm ---
# oldest_job NAME: prints the lowest number of this user's jobs of that name; nothing if there is none.
oldest_job() {
    local found
    found=$(squeue --noheader --user="$(id -un)" --name="$1" --format=%F) || fail "squeue does not answer"
    sort -n <<<"$found" | sed -n 1p
}

# Prints the folder of this job's log, or TRELM_HOME if nothing can be written there.
log_folder() {
    local folder
    folder=$(dirname "$(job_field StdOut)")
    if [[ -d $folder && -w $folder && $folder != /dev ]]; then echo "$folder"; else echo "$TRELM_HOME"; fi
}

# submit_again SBATCH OPTION... -- OPTION...: submits this script with this job's resources; prints the new number.
submit_again() (
    options=(--parsable --chdir="$TRELM_HOME" --cpus-per-task="$cpus")
    for pair in partition=Partition account=Account qos=QOS reservation=Reservation constraint=Features time=TimeLimit \
        mem=MinMemoryNode mem-per-cpu=MinMemoryCPU; do
        value=$(job_field "${pair#*=}")
        [[ -z $value ]] || options+=("--${pair%=*}=$value")
    done
    while [[ $1 != -- ]]; do options+=("$1"); shift; done
    shift
    # The new job must not inherit the variables that describe this one, such as SLURM_ARRAY_TASK_ID.
    mapfile -t own < <(compgen -e SLURM_ | grep -vx SLURM_CONF)
    unset "${own[@]}" SBATCH_ARRAY_INX SBATCH_GRES SBATCH_MEM_PER_CPU SBATCH_MEM_PER_NODE
    export TRELM_PARTS TRELM_RETRIES
    sbatch "${options[@]}" "$TRELM_HOME/slurm/prepare.sh" "$@" | sed 's/;.*//'  # drop ";CLUSTER"
)

main "$@"
