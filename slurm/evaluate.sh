#!/bin/bash
# Evaluate a run: export its last checkpoint to a Hugging Face folder and score that on the LAMA probes.
#
#   sbatch slurm/evaluate.sh                             the run in TRELM_OUT; submit from the repository's root
#   sbatch --dependency=afterok:JOB slurm/evaluate.sh    once the pre-training job JOB has finished
#
# Override any #SBATCH line on sbatch's command line. Arguments after the script's name go to `trelm evaluate lama`.
# The result is RUN/lama-STEP.json, .predictions.jsonl.gz and .png. See docs/slurm.md and docs/evaluation.md.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

script=evaluate
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file, so $0 is no help
[[ -f $TRELM_HOME/slurm/lib.sh ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"

# Export a variable before sbatch to change it. Relative paths start at TRELM_HOME.
TRELM_OUT=${TRELM_OUT:-runs/pretrain_large}    # run folder of `trelm pretrain`
TRELM_LAMA=${TRELM_LAMA:-data/lama}            # folder with relations.jsonl and TREx/P*.jsonl[.gz]
TRELM_EXPORT=${TRELM_EXPORT:-$TRELM_OUT/export}  # Hugging Face folder to write; replaces an earlier export

[[ -f $TRELM_OUT/checkpoints/latest.json ]] || fail "no checkpoint in $TRELM_OUT: train first, or set TRELM_OUT"
[[ -f $TRELM_LAMA/relations.jsonl && -d $TRELM_LAMA/TREx ]] ||
    fail "no probes in $TRELM_LAMA (relations.jsonl and TREx/P*.jsonl): set TRELM_LAMA"

trelm() (on_nodes --quiet -- "$python" -m trelm_ds "$@")

printed=$(trelm export "$TRELM_OUT" "$TRELM_EXPORT")
checkpoint=${printed##* exported from }  # not always the newest: export falls back if that one is damaged
say "$TRELM_EXPORT is $checkpoint"
trelm evaluate lama --model "$TRELM_EXPORT" --data "$TRELM_LAMA" --out "$TRELM_OUT/lama-$(basename "$checkpoint").json" "$@"
