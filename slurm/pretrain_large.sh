#!/bin/bash
# Pre-trains a BERT-large-size TRELM: one torchrun per node, one process per GPU.
#
#   sbatch slurm/pretrain_large.sh            one node with 8 GPUs; submit from the repository's root
#   sbatch -N 4 slurm/pretrain_large.sh       four of them
#
# Every #SBATCH line can be overridden on sbatch's command line or by SBATCH_* variables; what follows the script's name
# is for `trelm pretrain`. Near its time limit, after a crash or on a bad node the job commits what it can, requeues
# itself and continues. docs/slurm.md explains it.
#SBATCH --job-name=pretrain-large
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

script=pretrain_large
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file elsewhere
[[ -f $TRELM_HOME/slurm/lib.sh && -f $TRELM_HOME/trelm_ds/__main__.py ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"
source "$TRELM_HOME/slurm/pretrain_job.sh"
load_site

# Export what differs before sbatch. Relative paths start at TRELM_HOME; every node must see them.
TRELM_DATA=${TRELM_DATA:-data/pretrain}        # dataset made by `trelm prepare`: folder or fsspec URL
TRELM_OUT=${TRELM_OUT:-runs/pretrain_large}    # run folder; the same folder again means: resume
# One or more files, split at blanks; later ones win.
TRELM_CONFIG=${TRELM_CONFIG:-trelm_ds/recipes/sizes/large.yaml trelm_ds/recipes/trelm.yaml}
TRELM_ARGS=${TRELM_ARGS:-}                     # settings to override, such as "--trainer.max_steps 200000"
TRELM_PROCS_PER_NODE=${TRELM_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}  # set it on nodes without GPUs

pretrain_job "$@"
