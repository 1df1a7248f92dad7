#!/bin/bash
# Find the fastest ZeRO stage, tensor parallelism and size of micro-batches on one node, by short runs: `trelm tune`.
#
#   sbatch slurm/tune.sh                          one node with 8 GPUs; submit from the repository's root
#   sbatch slurm/tune.sh --budget-minutes 120     arguments go to `trelm tune`
#
# Override any #SBATCH line on sbatch's command line or with SBATCH_* variables. Near the time limit the job is requeued
# and goes on with the trial that it was at; submitted again, it goes on as well. Results are in TRELM_OUT. See
# docs/tuning.md and docs/slurm.md.
#SBATCH --job-name=tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

script=tune
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file, so $0 is no help
[[ -f $TRELM_HOME/slurm/lib.sh ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"
source "$TRELM_HOME/slurm/pretrain_job.sh"  # for check_request

# Export a variable before sbatch to change it. Relative paths start at TRELM_HOME.
TRELM_DATA=${TRELM_DATA:-data/pretrain}        # dataset made by `trelm prepare`: folder or fsspec URL
TRELM_OUT=${TRELM_OUT:-runs/tune_large}        # folder of trials and results; one that has some is gone on with
# One or more YAML files, separated by blanks; later ones win.
TRELM_CONFIG=${TRELM_CONFIG:-trelm_ds/recipes/sizes/large.yaml trelm_ds/recipes/trelm.yaml}
TRELM_ARGS=${TRELM_ARGS:-}                     # settings to override, such as "--trainer.compile true"
TRELM_PROCS_PER_NODE=${TRELM_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}  # set this on nodes without GPUs

# Handles USR1, which Slurm sends to this shell alone: the trial under way is ended.
# shellcheck disable=SC2317,SC2329  # called by a trap
stop_trial() {
    trap '' USR1
    stopped=1
    say "SIGUSR1: the trial under way will begin anew"
    [[ -z $step_pid ]] || kill -USR1 "$step_pid" || true
}

# Sets `code`, the exit code of `trelm tune`, as one job step.
tune() {
    # As in a job that trains, whose speed is to be measured.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > TRELM_PROCS_PER_NODE ? cpus / TRELM_PROCS_PER_NODE : 1))}
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    on_nodes -- "$python" -m trelm_ds tune --data "$TRELM_DATA" --out "$TRELM_OUT" --ranks "$TRELM_PROCS_PER_NODE" \
        "${settings[@]}" &
    step_pid=$!  # in the background, because bash runs traps only between commands
    [[ -z $stopped ]] || kill -USR1 "$step_pid" || true
    code=0
    wait "$step_pid" || code=$?
    while kill -0 "$step_pid" 2>/dev/null; do  # a trap interrupted `wait`
        code=0
        wait "$step_pid" || code=$?
    done
}

check_request "$@"
((SLURM_NNODES == 1)) || fail "trials run on one node: leave out --nodes"
stopped="" step_pid=""
trap stop_trial USR1
tune
if [[ -z $stopped || $TRELM_REQUEUE == 0 ]] || ((code == 0 || code == 2)); then
    exit "$code"
fi
say "requeued near its time limit"
trap '' TERM  # Slurm sends it to a requeued script
ask_slurm scontrol requeue "$job" || fail "cannot be requeued: submit it again, it goes on"
exit 1
