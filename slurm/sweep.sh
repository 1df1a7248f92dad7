#!/bin/bash
# Pre-train once for each line of a text file: a job array of runs that differ in their settings.
#
#   sbatch --array=1-12 slurm/sweep.sh sweep.txt    run I uses line I; submit from the repository's root
#   sbatch --array=1-12%4 slurm/sweep.sh sweep.txt  at most four at a time
#
# A line holds settings separated by blanks, such as `--optimizer.lr 1e-4 --memory.enabled false`; empty lines and lines
# that begin with # do not count. See slurm/sweep.example.txt. Run 7 is written to TRELM_OUT/007. Arguments after the
# file's name apply to all runs. Each run is checked, requeued and resumed like slurm/pretrain_base.sh.
# See docs/slurm.md.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

script=sweep
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file, so $0 is no help
[[ -f $TRELM_HOME/slurm/lib.sh ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"
source "$TRELM_HOME/slurm/pretrain_job.sh"

# Export a variable before sbatch to change it. Relative paths start at TRELM_HOME; all nodes must see them.
TRELM_DATA=${TRELM_DATA:-data/pretrain}        # dataset made by `trelm prepare`: folder or fsspec URL
TRELM_OUT=${TRELM_OUT:-runs/sweep}             # folder of run folders; existing runs are resumed
# One or more YAML files, separated by blanks; later ones win.
TRELM_CONFIG=${TRELM_CONFIG:-trelm_ds/recipes/sizes/base.yaml trelm_ds/recipes/trelm.yaml}
TRELM_ARGS=${TRELM_ARGS:-}                     # settings to override in all runs; a run's own line wins
TRELM_PROCS_PER_NODE=${TRELM_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}  # set this on nodes without GPUs

# Sets `line`, the settings of this run, and saves it in the run folder, so that a requeued run keeps its settings even
# if the file was edited meanwhile.
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
experiment=$(basename "$TRELM_OUT")  # all runs share one MLflow experiment, named after the folder
TRELM_OUT=$TRELM_OUT/$(printf %03d "$SLURM_ARRAY_TASK_ID")
choose_line "${1:-}"
shift
say "run $TRELM_OUT: $line"
read -ra line_settings <<<"$line"
pretrain_job --tracking.experiment "$experiment" "$@" "${line_settings[@]}"
