# The body of slurm/pretrain_SIZE.sh, which sets `size` and TRELM_HOME and sources this file. Not for sbatch.
# shellcheck shell=bash disable=SC2154
script=pretrain_$size
source "$TRELM_HOME/slurm/lib.sh"
source "$TRELM_HOME/slurm/pretrain_job.sh"

# Export a variable before sbatch to change it. Relative paths start at TRELM_HOME; all nodes must see them.
TRELM_DATA=${TRELM_DATA:-data/pretrain}          # dataset made by `trelm prepare`: folder or fsspec URL
TRELM_OUT=${TRELM_OUT:-runs/pretrain_$size}      # run folder; an existing run is resumed
# One or more YAML files, separated by blanks; later ones win.
TRELM_CONFIG=${TRELM_CONFIG:-trelm_ds/recipes/sizes/$size.yaml trelm_ds/recipes/trelm.yaml}
TRELM_ARGS=${TRELM_ARGS:-}                       # settings to override, such as "--trainer.max_steps 200000"
TRELM_PROCS_PER_NODE=${TRELM_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}  # set this on nodes without GPUs

pretrain_job "$@"
