#!/bin/bash
# Pre-train a TRELM of BERT-large size: one torchrun per node, one process per GPU.
#
#   sbatch slurm/pretrain_large.sh            one node with 8 GPUs; submit from the repository's root
#   sbatch -N 4 slurm/pretrain_large.sh       four of them
#
# Override any #SBATCH line on sbatch's command line or with SBATCH_* variables, and ask for memory there if the site's
# default for these cores is not enough (--mem=0 is all of the node). Arguments after the script's name go to `trelm pretrain`. slurm/pretrain.sh lists the variables
# (TRELM_DATA, TRELM_OUT, ...) and does the work; docs/slurm.md explains what happens at the time limit, after a crash
# and on a bad node.
#SBATCH --job-name=pretrain-large
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

size=large
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file, so $0 is no help
[[ -f $TRELM_HOME/slurm/pretrain.sh ]] ||
    { echo "pretrain_$size: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/pretrain.sh"
