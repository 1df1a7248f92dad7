# What the job scripts of this folder share. They source it; it is not for sbatch.
# shellcheck shell=bash disable=SC2154
# Needs: $script (name for messages), $TRELM_HOME.

say() { echo "$script: $1"; }
fail() { echo "$script: $1" >&2; exit 2; }

# --- Site values: the environment, then slurm/site.env (which leaves set what is, by `:=`), then these defaults. ---
load_site() {
    [[ -n ${SLURM_JOB_ID:-} ]] || fail "not inside a Slurm job: start it with 'sbatch slurm/$script.sh'"
    TRELM_HOME=$(cd "$TRELM_HOME" && pwd) || fail "TRELM_HOME=$TRELM_HOME: no such folder"
    local home=$TRELM_HOME site=${TRELM_SITE:-$TRELM_HOME/slurm/site.env}
    [[ -z ${TRELM_SITE:-} || -f $site ]] || fail "no site file at $TRELM_SITE: correct or unset TRELM_SITE"
    if [[ -f $site ]]; then
        bash -n "$site" 2>/dev/null || fail "$site: not a shell file: $(bash -n "$site" 2>&1 | sed -n 1p)"
        set -a +eu
        # shellcheck disable=SC1090
        source "$site"
        set +a -eu
    fi
    TRELM_HOME=$home
    cd "$TRELM_HOME" || fail "TRELM_HOME=$TRELM_HOME: cannot be entered"
    TRELM_VENV=${TRELM_VENV:-.venv}
    TRELM_MODULES=${TRELM_MODULES:-}
    TRELM_CONTAINER=${TRELM_CONTAINER:-}
    TRELM_CONTAINER_RUNTIME=${TRELM_CONTAINER_RUNTIME:-pyxis}
    TRELM_CONTAINER_MOUNTS=${TRELM_CONTAINER_MOUNTS:-}
    TRELM_CONTAINER_PYTHON=${TRELM_CONTAINER_PYTHON:-python3}
    TRELM_HEALTH=${TRELM_HEALTH:-1}
    TRELM_CHECK_GPUS=${TRELM_CHECK_GPUS:-${SLURM_GPUS_ON_NODE:-0}}
    TRELM_MIN_DISK_GB=${TRELM_MIN_DISK_GB:-5}
    TRELM_MIN_BUS_GBPS=${TRELM_MIN_BUS_GBPS:-0}
    TRELM_MAX_CLOCK_SKEW_S=${TRELM_MAX_CLOCK_SKEW_S:-5}
    TRELM_TORCHRUN_ARGS=${TRELM_TORCHRUN_ARGS:-}
    TRELM_REQUEUE=${TRELM_REQUEUE:-1}
    TRELM_MAX_RESTARTS=${TRELM_MAX_RESTARTS:-50}
    TRELM_MAX_STALLS=${TRELM_MAX_STALLS:-3}
    export TRELM_MIN_DISK_GB TRELM_MIN_BUS_GBPS TRELM_MAX_CLOCK_SKEW_S
    local name
    for name in TRELM_CHECK_GPUS TRELM_MAX_RESTARTS TRELM_MAX_STALLS; do
        [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name must be a whole number, got '${!name}'"
    done
    for name in TRELM_MIN_DISK_GB TRELM_MIN_BUS_GBPS TRELM_MAX_CLOCK_SKEW_S; do
        [[ ${!name} =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "$name must be a number, got '${!name}'"
    done
    for name in TRELM_HEALTH TRELM_REQUEUE; do
        [[ ${!name} =~ ^[01]$ ]] || fail "$name must be 0 or 1, got '${!name}'"
    done
    cpus=${SLURM_CPUS_PER_TASK:-1}
    # How scontrol is told of this job. Job arrays set ARRAY_TASK: a task's plain number may mean the whole array.
    # shellcheck disable=SC2034
    job=$SLURM_JOB_ID
    load_modules
    choose_python
}

load_modules() {
    [[ -n $TRELM_MODULES ]] || return 0
    [[ $(type -t module) == function ]] || fail "TRELM_MODULES is set, but there is no 'module' command here"
    local modules
    read -rd '' -a modules <<<"$TRELM_MODULES" || true
    set +u  # environment modules read unset variables
    module load "${modules[@]}" || fail "module load $TRELM_MODULES failed"
    set -u
}

# Sets `python`, and `step_options` and `inside`: what goes before it on srun's line.
choose_python() {
    step_options=() inside=()
    # The code of TRELM_HOME is what runs, wherever the environment's own installation points.
    export PYTHONPATH=$TRELM_HOME:$TRELM_HOME/kernels${PYTHONPATH:+:$PYTHONPATH}
    if [[ -z $TRELM_CONTAINER ]]; then
        python=$TRELM_VENV/bin/python
        [[ -x $python ]] || fail "no virtual environment at $TRELM_VENV ($python is missing): create it or set TRELM_VENV"
        return
    fi
    python=$TRELM_CONTAINER_PYTHON
    local mounts=$TRELM_HOME:$TRELM_HOME${TRELM_CONTAINER_MOUNTS:+,$TRELM_CONTAINER_MOUNTS}
    case $TRELM_CONTAINER_RUNTIME in
    pyxis)
        step_options=(--container-image="$TRELM_CONTAINER" --container-mounts="$mounts" --container-workdir="$TRELM_HOME")
        [[ $(srun --help 2>/dev/null) == *--container-image* ]] ||
            fail "TRELM_CONTAINER_RUNTIME=pyxis, but srun here has no --container-image: install pyxis or use apptainer"
        ;;
    apptainer)
        command -v apptainer >/dev/null || fail "TRELM_CONTAINER_RUNTIME=apptainer, but there is no apptainer here"
        [[ $TRELM_CONTAINER == *://* || -e $TRELM_CONTAINER ]] || fail "no container image at $TRELM_CONTAINER"
        inside=(apptainer exec --nv --bind "$mounts" --pwd "$TRELM_HOME" "$TRELM_CONTAINER")
        ;;
    *) fail "TRELM_CONTAINER_RUNTIME must be pyxis or apptainer, got '$TRELM_CONTAINER_RUNTIME'" ;;
    esac
}

# --- Slurm ---
# ask_slurm COMMAND...: its answer, which the controller may owe for some minutes; 1 when it never came.
ask_slurm() {
    local attempt
    for attempt in {1..30}; do
        "$@" && return
        ((attempt == 30)) || sleep 10
    done
    return 1
}

# of_job FIELD: what Slurm says of this job; empty for nothing, or no answer.
of_job() { ask_slurm scontrol show job -o "$job" | sed -n "s/.* $1=\([^ ]*\).*/\1/p" | sed 's/^(null)$//' || true; }

# on_nodes [SRUN OPTION...] -- COMMAND...: becomes a job step of one task per node. For subshells: `on_nodes ... &`.
on_nodes() {
    local options=()
    while [[ $1 != -- ]]; do options+=("$1"); shift; done
    shift
    # --kill-on-bad-exit: one failed node ends the step instead of leaving the others waiting. --cpus-per-task: srun does
    # not inherit it. --export: sbatch's own --export is not for this script's variables.
    exec srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$cpus" \
        --export=ALL --kill-on-bad-exit=1 "${step_options[@]}" "${options[@]}" "${inside[@]}" "$@"
}
