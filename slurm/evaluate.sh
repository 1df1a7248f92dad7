#!/bin/bash
# Evaluate a model on all tasks as a job array: task I scores the I-th of
#
#   lama typing relation cola sst-2 mrpc sts-b qqp mnli qnli rte
#
#   sbatch slurm/evaluate.sh                             the last checkpoint of the run in TRELM_OUT
#   sbatch --dependency=afterok:JOB slurm/evaluate.sh    once the pre-training job JOB has finished
#   sbatch --array=1 slurm/evaluate.sh --batch-size 256  some of the tasks: here LAMA
#   TRELM_MODEL=models/kepler sbatch slurm/evaluate.sh   a Hugging Face folder instead of a run
#
# Submit from the repository's root. Override any #SBATCH line on sbatch's command line. Arguments after the script's name
# go to `trelm evaluate`, for every task of the array. Tasks without data end at once. See docs/slurm.md.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --array=1-11
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

script=evaluate
TRELM_HOME=${TRELM_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}  # the repository; Slurm runs a copy of this file, so $0 is no help
[[ -f $TRELM_HOME/slurm/lib.sh ]] ||
    { echo "$script: no trelm_ds in $TRELM_HOME: submit from the repository's root or set TRELM_HOME" >&2; exit 2; }
source "$TRELM_HOME/slurm/lib.sh"

# Export a variable before sbatch to change it. Relative paths start at TRELM_HOME.
TRELM_OUT=${TRELM_OUT:-runs/pretrain_large}        # run folder of `trelm pretrain`
TRELM_MODEL=${TRELM_MODEL:-}                       # Hugging Face folder to evaluate in its place
TRELM_TASKS=${TRELM_TASKS:-}                       # the tasks that the array counts through; default: the eleven above
TRELM_LAMA=${TRELM_LAMA:-data/lama}                # LAMA's data folder
TRELM_TYPING=${TRELM_TYPING:-data/open_entity}     # train.json, dev.json, test.json
TRELM_RELATION=${TRELM_RELATION:-data/tacred}      # likewise
TRELM_GLUE=${TRELM_GLUE:-data/glue}                # CoLA/, MRPC/ ...
TRELM_RESULTS=${TRELM_RESULTS:-}                   # folder of results; default: RUN/evaluation/step-N, MODEL-evaluation

all=(lama typing relation cola sst-2 mrpc sts-b qqp mnli qnli rte)

trelm() (on_nodes --quiet -- "$python" -m trelm_ds "$@")

# Sets `task`, its kind of `trelm evaluate` and its data; ends the job where there is nothing to do.
choose_task() {
    local tasks=() name
    read -ra tasks <<<"${TRELM_TASKS:-${all[*]}}"
    for name in "${tasks[@]}"; do
        [[ " ${all[*]} " == *" $name "* ]] || fail "TRELM_TASKS: '$name' is none of ${all[*]}"
    done
    local number=${SLURM_ARRAY_TASK_ID:-1}
    ((number >= 1)) || fail "the array counts from 1, such as --array=1-${#tasks[@]}"
    ((number <= ${#tasks[@]})) || { say "there is no task $number of ${#tasks[@]}"; exit 0; }
    task=${tasks[number - 1]} kind=$task
    case $task in
    lama) data=$TRELM_LAMA ;;
    typing) data=$TRELM_TYPING ;;
    relation) data=$TRELM_RELATION ;;
    *) kind=glue data=$TRELM_GLUE ;;
    esac
    local place=$data
    [[ $kind != glue ]] || place=$(find "$data" -mindepth 1 -maxdepth 1 -iname "$task" 2>/dev/null | head -n 1) || true
    [[ -z $place || ! -d $place ]] || return 0
    [[ -z $TRELM_TASKS ]] || fail "no data for $task in $data: set TRELM_${kind^^}"
    say "no data for $task in $data: nothing to do"
    exit 0
}

# Sets `model` and `results`. All tasks of an array evaluate one checkpoint, which the first of them to come here exports.
choose_model() {
    if [[ -n $TRELM_MODEL ]]; then
        [[ -f $TRELM_MODEL/config.json ]] || fail "no Hugging Face folder at $TRELM_MODEL: correct or unset TRELM_MODEL"
        model=$TRELM_MODEL results=${TRELM_RESULTS:-${TRELM_MODEL%/}-evaluation}
        return
    fi
    [[ -f $TRELM_OUT/checkpoints/latest.json ]] ||
        fail "no checkpoint in $TRELM_OUT: train first, or set TRELM_OUT or TRELM_MODEL"
    local exports=$TRELM_OUT/export number=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} step
    local chosen=$exports/.chosen-$number
    mkdir -p "$exports" || fail "$exports cannot be created"
    exec 9>"$exports/.lock"
    flock 9 || say "$exports has no locks"
    if [[ ! -f $chosen ]]; then
        local printed
        printed=$(trelm export "$TRELM_OUT" "$exports/.new-$number")
        step=$(basename "${printed##* exported from }")  # not always the newest: export falls back if that is damaged
        if [[ -f $exports/$step/config.json ]]; then
            rm -r "$exports/.new-$number"
        else
            mv -T "$exports/.new-$number" "$exports/$step"
        fi
        echo "$step" >"$chosen"
    fi
    exec 9>&-
    step=$(<"$chosen")
    model=$exports/$step results=${TRELM_RESULTS:-$TRELM_OUT/evaluation/$step}
    # In the store of the run, unless the site has one.
    export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-sqlite:///$(realpath "$TRELM_OUT/..")/mlflow.db}
}

choose_task
choose_model
mkdir -p "$results" || fail "$results cannot be created: set TRELM_RESULTS"
say "$task of $model"
options=(--model "$model" --data "$data" --out "$results/$task.json")
[[ $kind == lama ]] || options+=(--truncate)  # what was cut stands in the result
[[ $kind != glue ]] || options+=(--tasks "$task")
trelm evaluate "$kind" "${options[@]}" "$@"
