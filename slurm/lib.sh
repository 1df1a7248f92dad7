# What the job scripts share. A script sets `script` (its name in messages) and TRELM_HOME, then sources this file, which
# reads the site's values, changes into the repository and chooses Python. Not for sbatch.
# shellcheck shell=bash disable=SC2154

say() { echo "$script: $1"; }
fail() { echo "$script: $1" >&2; exit 2; }

# --- Site values: the environment wins over slurm/site.env (which assigns with `:=`), and both over the defaults. ---
read_site_file() {
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
    TRELM_HOME=$home  # the site file must not move the job to another repository
    cd "$TRELM_HOME" || fail "TRELM_HOME=$TRELM_HOME: cannot be entered"
}

set_defaults() {
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
    export TRELM_MIN_DISK_GB TRELM_MIN_BUS_GBPS TRELM_MAX_CLOCK_SKEW_S  # read by trelm_ds.cluster.health
    cpus=${SLURM_CPUS_PER_TASK:-1}
}

check_values() {
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

# Sets `python`, and what srun needs to start it: `step_options` for srun itself, `inside` as a prefix to the command.
choose_python() {
    step_options=() inside=()
    # Run the code in TRELM_HOME, even if the virtual environment has trelm_ds installed from elsewhere.
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
# ask_slurm COMMAND...: runs it, and tries again for 5 minutes while the controller does not answer; then returns 1.
ask_slurm() {
    local attempt
    for attempt in {1..30}; do
        "$@" && return
        ((attempt == 30)) || sleep 10
    done
    return 1
}

# job_field FIELD: prints a field of `scontrol show job` for this job; nothing if it is unset or Slurm does not answer.
job_field() { ask_slurm scontrol show job -o "$job" | sed -n "s/.* $1=\([^ ]*\).*/\1/p" | sed 's/^(null)$//' || true; }

# on_nodes [SRUN OPTION...] -- COMMAND...: runs it as a job step with one task per node. It replaces the shell, so call it
# in a subshell: `on_nodes ... &`.
on_nodes() {
    local options=()
    while [[ $1 != -- ]]; do options+=("$1"); shift; done
    shift
    # --kill-on-bad-exit: one failed node ends the step instead of leaving the others waiting. --cpus-per-task: srun does
    # not inherit it from the job. --export=ALL: an sbatch --export list must not hide variables this script sets.
    # --mem=0: the memory that the job has.
    exec srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$cpus" \
        --mem=0 --export=ALL --kill-on-bad-exit=1 "${step_options[@]}" "${options[@]}" "${inside[@]}" "$@"
}

# --- What is not this job's ---
# sbatch hands on the variables of the shell it is called in. In salloc, `srun --pty` or torchrun, some of them belong to
# another job, and Slurm replaces only those that this job has as well.
forget_other_jobs() {
    # They would make this job's programs ranks of another run.
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID
    # srun takes them for its options. Steps need none: they get the job's memory (--mem=0) and all of its GPUs.
    unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE SLURM_GRES SLURM_GPUS SLURM_GPUS_PER_NODE \
        SLURM_GPUS_PER_SOCKET SLURM_GPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK SLURM_NTASKS_PER_CORE \
        SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_SOCKET SLURM_NTASKS_PER_TRES SLURM_WORKING_DIR
    # A batch script is no task of a step; the binding that a step had must not become this job's.
    if [[ -n ${SLURM_STEP_ID:-${SLURM_STEPID:-}} ]]; then
        local own
        mapfile -t own < <(compgen -e | grep -E '^SLURM_(STEP|SRUN_|CPU_BIND|MEM_BIND|GPU_BIND|TRES_BIND|DISTRIBUTION|EXACT|EXCLUSIVE|OVERLAP|WHOLE|PTY_)')
        unset "${own[@]}"
    fi
    local fields
    fields=$(ask_slurm scontrol show job -o "$job") || return 0
    [[ $fields =~ TresPer[A-Za-z]+=[^\ ]*gpu ]] || unset SLURM_GPUS_ON_NODE SLURM_JOB_GPUS
}

# --- The prologue of every job ---
[[ -n ${SLURM_JOB_ID:-} ]] || fail "not inside a Slurm job: start it with 'sbatch slurm/$script.sh'"
[[ -f $TRELM_HOME/trelm_ds/__main__.py ]] ||
    fail "no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME"
# This job's name for scontrol. Array tasks set it to ARRAY_TASK, because a task's plain number may mean the whole array.
job=$SLURM_JOB_ID
forget_other_jobs
read_site_file
set_defaults
check_values
load_modules
choose_python
