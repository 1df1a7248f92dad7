#!/bin/bash
# Pre-trains once for every line of a text file: a job array of runs that differ in their settings.
#
#   sbatch --array=1-12 slurm/sweep.sh sweep.txt    run I takes line I; submit from the repository's root
#   sbatch --array=1-12%4 slurm/sweep.sh sweep.txt  at most four at a time
#
# A line holds settings, such as `--optimizer.lr 1e-4 --memory.enabled false`, split at blanks; empty lines and lines that
# begin with # are not counted. slurm/sweep.example.txt shows one. Run 7 lies in TRELM_OUT/007. What follows the file's
# name is for all runs. Each is checked, requeued and continued like slurm/pretrain_base.sh. docs/slurm.md explains it.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

script=sweep
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file elsewhere
[[ -f $TRELM_HOME/slurm/lib.sh && -f $TRELM_HOME/trelm_ds/__main__.py ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"
source "$TRELM_HOME/slurm/pretrain_job.sh"
load_site

# Export what differs before sbatch. Relative paths start at TRELM_HOME; every node must see them.
TRELM_DATA=${TRELM_DATA:-data/pretrain}        # dataset made by `trelm prepare`: folder or fsspec URL
TRELM_OUT=${TRELM_OUT:-runs/sweep}             # folder of run folders; the same again means: continue them
# One or more files, split at blanks; later ones win.
TRELM_CONFIG=${TRELM_CONFIG:-trelm_ds/recipes/sizes/base.yaml trelm_ds/recipes/trelm.yaml}
TRELM_ARGS=${TRELM_ARGS:-}                     # settings to override in all runs; those of a line win
TRELM_PROCS_PER_NODE=${TRELM_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}  # set it on nodes without GPUs

# Sets `line`, that of this run. It is kept in the run folder: a run that goes on does not take other settings because
# the file was edited meanwhile.
choose_line() {
    local file=$1 number=$SLURM_ARRAY_TASK_ID kept=$TRELM_OUT/settings.txt lines
    if ((${SLURM_RESTART_COUNT:-0})) && [[ -f $kept ]]; then
        line=$(<"$kept")
        return
    fi
    [[ -f $file ]] || fail "no file of settings at '$file': sbatch --array=1-N slurm/sweep.sh FILE"
    mapfile -t lines < <(tr -d '\r' <"$file" | grep -avE '^[[:space:]]*(#|$)')
    ((number >= 1 && number <= ${#lines[@]})) || fail "no line $number in $file, which has ${#lines[@]}: correct --array"
    line=${lines[number - 1]}
    if [[ -f $kept && -f $TRELM_OUT/checkpoints/latest.json && $line != "$(<"$kept")" ]]; then
        fail "$TRELM_OUT was trained with '$(<"$kept")', line $number of $file is '$line': restore it or set TRELM_OUT"
    fi
    mkdir -p "$TRELM_OUT" || fail "cannot write into TRELM_OUT=$TRELM_OUT"
    echo "$line" >"$kept"
}

[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || fail "submit it as an array, such as 'sbatch --array=1-12 slurm/sweep.sh sweep.txt'"
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
experiment=$(basename "$TRELM_OUT")  # in MLflow the runs stand side by side: one experiment, the run folders' names
TRELM_OUT=$TRELM_OUT/$(printf %03d "$SLURM_ARRAY_TASK_ID")
choose_line "${1:-}"
shift
say "run $TRELM_OUT: $line"
read -ra line_settings <<<"$line"
pretrain_job --tracking.experiment "$experiment" "$@" "${line_settings[@]}"
