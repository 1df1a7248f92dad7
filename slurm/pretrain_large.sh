#!/bin/bash
# Pre-trains a BERT-large-size model: one torchrun per node, one process per GPU.
#
#   sbatch slurm/pretrain_large.sh            one node with 8 GPUs; submit from the repository's root
#   sbatch -N 4 slurm/pretrain_large.sh       four of them
#
# Every #SBATCH line can be overridden on sbatch's command line; what follows the script's name is for `trelm pretrain`.
# At the time limit the run commits a checkpoint and ends; submitting the same line again continues it.
#SBATCH --job-name=pretrain-large
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# --- Site values: export what differs before sbatch. Relative paths start at TRELM_HOME; every node must see them. ---
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}       # the repository; Slurm runs a copy of this file elsewhere
TRELM_DATA=${TRELM_DATA:-data/pretrain}                   # dataset made by `trelm prepare`: folder or fsspec URL
TRELM_OUT=${TRELM_OUT:-runs/pretrain_large}               # run folder; the same folder again means: resume
# One or more files, split at blanks; later ones win.
TRELM_CONFIG=${TRELM_CONFIG:-trelm_ds/recipes/sizes/large.yaml trelm_ds/recipes/trelm.yaml}
TRELM_VENV=${TRELM_VENV:-.venv}                           # virtual environment, or any prefix with bin/python
TRELM_MODULES=${TRELM_MODULES:-}                          # modules to load first, such as "cuda/12.8"
TRELM_PROCS_PER_NODE=${TRELM_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}   # set it on nodes without GPUs
TRELM_ARGS=${TRELM_ARGS:-}                                # settings to override, such as "--trainer.max_steps 200000"

# --- What would fail later fails here: one line, exit code 2. ---
fail() { echo "pretrain_large: $1" >&2; exit 2; }

[[ -n ${SLURM_JOB_ID:-} ]] || fail "not inside a Slurm job: start it with 'sbatch $0'"
[[ -f $TRELM_HOME/trelm_ds/__main__.py ]] ||
    fail "no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME"
cd "$TRELM_HOME"
python=$TRELM_VENV/bin/python
[[ -x $python ]] || fail "no virtual environment at $TRELM_VENV ($python is missing): create it or set TRELM_VENV"
read -ra configs <<<"$TRELM_CONFIG"
((${#configs[@]})) || fail "no configuration: set TRELM_CONFIG"
settings=()
for config in "${configs[@]}"; do
    [[ -f $config ]] || fail "no configuration at $config: set TRELM_CONFIG"
    settings+=(--config "$config")
done
[[ $TRELM_DATA == *://* || -d $TRELM_DATA ]] || fail "no dataset at $TRELM_DATA: make one with 'trelm prepare' or set TRELM_DATA"
[[ $TRELM_DATA == *://* || -f $TRELM_DATA/manifest.json ]] || fail "no manifest.json in $TRELM_DATA: not a dataset, or not finished"
[[ $TRELM_PROCS_PER_NODE =~ ^[1-9][0-9]*$ ]] ||
    fail "TRELM_PROCS_PER_NODE must be a positive number, got '$TRELM_PROCS_PER_NODE'"

if [[ -n $TRELM_MODULES ]]; then
    [[ $(type -t module) == function ]] || fail "TRELM_MODULES is set, but there is no 'module' command here"
    set +u                                             # environment modules read unset variables
    read -ra modules <<<"$TRELM_MODULES"
    module load "${modules[@]}" || fail "module load $TRELM_MODULES failed"
    set -u
fi

# --- Launch ---
# Addresses come from Slurm, since node names need not resolve. The ranks meet at the first node; the port follows from
# the job id, so that two jobs on one node do not meet each other.
node_address() { scontrol show node -o "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'; }
export -f node_address                                 # every node asks for its own below
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
endpoint=$(node_address "${nodes[0]}"):$((20000 + SLURM_JOB_ID % 10000))

# Without it torchrun allows every process one thread, too few for data preparation and for CPU runs.
cpus=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > TRELM_PROCS_PER_NODE ? cpus / TRELM_PROCS_PER_NODE : 1))}
# NCCL says why it failed and is quiet otherwise. It finds InfiniBand and network cards by itself; where it picks the
# wrong one, export NCCL_SOCKET_IFNAME or NCCL_IB_HCA before sbatch: the job inherits them.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# torchrun hands the signals named below to its workers and kills those still running after --shutdown-timeout, which
# must therefore be shorter than the 180 s of --signal above. It has to be the Slurm task itself (exec): on most
# clusters a signal reaches nothing else.
torchrun=(
    --nnodes="$SLURM_NNODES" --nproc-per-node="$TRELM_PROCS_PER_NODE"
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$endpoint"
    --signals-to-handle="SIGUSR1,SIGTERM,SIGINT,SIGHUP,SIGQUIT" --shutdown-timeout=160
)
read -ra more <<<"$TRELM_ARGS"
pretrain=(-m trelm_ds pretrain "${settings[@]}" --data "$TRELM_DATA" --out "$TRELM_OUT" "${more[@]}" "$@")
echo "pretrain_large: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST," \
    "$SLURM_NNODES x $TRELM_PROCS_PER_NODE processes, meeting at $endpoint"
echo "pretrain_large: $python ${pretrain[*]}"

# --kill-on-bad-exit: one failed node ends the job instead of leaving the others waiting. --cpus-per-task: srun does not
# inherit it. In the background, because a trap runs only between commands.
# shellcheck disable=SC2016  # expanded on each node
srun --kill-on-bad-exit=1 --cpus-per-task="$cpus" \
    bash -c 'exec "$0" -m torch.distributed.run --local-addr="$(node_address "$SLURMD_NODENAME")" "$@"' \
    "$python" "${torchrun[@]}" "${pretrain[@]}" &
srun_pid=$!

# USR1 reaches this shell alone (--signal=B:), so srun passes it on to the ranks, which finish their step and commit a
# checkpoint. TERM (scancel, preemption) they get from Slurm itself. Either once only: a second signal makes torchrun
# drop its workers before they are done.
stopped_by=0
# shellcheck disable=SC2317  # the traps call it
stop() { trap '' USR1 TERM; stopped_by=$1; echo "pretrain_large: signal $1, the ranks write a checkpoint"; }
trap 'stop 10; kill -USR1 "$srun_pid" || true' USR1
trap 'stop 15' TERM

code=0
wait "$srun_pid" || code=$?
while kill -0 "$srun_pid" 2>/dev/null; do              # a trap interrupted the wait
    code=0
    wait "$srun_pid" || code=$?
done

# torchrun ends with 1 whatever stopped it: after a signal say 128 + its number, as programs do.
if ((stopped_by && code)); then
    code=$((128 + stopped_by))
    pointer=$TRELM_OUT/checkpoints/latest.json
    echo "pretrain_large: stopped, last checkpoint: $(cat "$pointer" 2>/dev/null || echo none)"
fi
echo "pretrain_large: exit code $code"
exit "$code"
