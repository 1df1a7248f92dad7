# A pre-training job from its checks to its end or requeue. pretrain.sh and sweep.sh source it after lib.sh.
# shellcheck shell=bash disable=SC2154  # lib.sh sets script, python, cpus

# pretrain_job [SETTING...]: the arguments go to `trelm pretrain`.
pretrain_job() {
    check_request "$@"
    state=$TRELM_OUT/slurm
    { mkdir -p "$state" && [[ -w $state ]]; } || fail "cannot write into TRELM_OUT=$TRELM_OUT"
    ((10#$(df --output=avail -B 1000000 "$state" | tail -n 1 | tr -d ' ') >= 1000 * ${TRELM_MIN_DISK_GB%.*})) ||
        fail "TRELM_OUT=$TRELM_OUT: less than TRELM_MIN_DISK_GB=$TRELM_MIN_DISK_GB GB are free"
    code=0 stopped_by="" step_pid="" trained=""
    work=$state/job-$SLURM_JOB_ID  # where the nodes leave answers and exit codes for this script
    { rm -rf "$work" && mkdir "$work"; } || fail "cannot write into TRELM_OUT=$TRELM_OUT"
    # Slurm sends USR1 to this shell alone (--signal=B:), which passes it on to the ranks: they finish their step and
    # commit a checkpoint. Pass it on once only: a second signal makes torchrun drop its workers before they are done.
    # TERM (scancel, preemption) goes to the ranks directly, so this shell only waits for them.
    trap stop USR1
    trap 'say "SIGTERM"' TERM
    note_start
    read_settings
    set_rendezvous
    check_nodes
    train
    settle
}

# --- Fail early, with one line and exit code 2. ---
# Sets `settings`, the arguments of `trelm pretrain` in the order in which they count.
check_request() {
    local config configs more
    read -rd '' -a configs <<<"$TRELM_CONFIG" || true  # read -d: the value may span several lines
    ((${#configs[@]})) || fail "no configuration: set TRELM_CONFIG"
    settings=()
    for config in "${configs[@]}"; do
        [[ -f $config ]] || fail "no configuration at $config: set TRELM_CONFIG"
        settings+=(--config "$config")
    done
    read -rd '' -a more <<<"$TRELM_ARGS" || true
    settings+=("${more[@]}" "$@")
    [[ $TRELM_DATA == *://* || -d $TRELM_DATA ]] ||
        fail "no dataset at $TRELM_DATA: make one with 'trelm prepare' or set TRELM_DATA"
    [[ $TRELM_DATA == *://* || -f $TRELM_DATA/manifest.json ]] ||
        fail "no manifest.json in $TRELM_DATA: not a dataset, or not finished"
    [[ $TRELM_PROCS_PER_NODE =~ ^[1-9][0-9]*$ ]] ||
        fail "TRELM_PROCS_PER_NODE must be a positive number, got '$TRELM_PROCS_PER_NODE'"
}

# Sets `degree`, model.tensor_parallel as files and arguments have it, and ends the job unless it divides the processes of
# a node. Where the settings cannot be read although there is no mistake in them, the check of nodes says more.
read_settings() {
    local printed result=0
    degree=1
    printed=$(on_nodes --nodes=1 --ntasks=1 -- "$python" -m trelm_ds pretrain "${settings[@]}" --print-config) || result=$?
    ((result != 2)) || finish 2 "not requeued: a restart would not fix this mistake, see $log"
    printed=$(sed -n '/^model:/,/^[^ ]/s/^  tensor_parallel: //p' <<<"$printed")
    [[ -z $printed ]] || degree=$printed
    ((TRELM_PROCS_PER_NODE % degree == 0)) || finish 2 "model.tensor_parallel: $degree does not divide the \
$TRELM_PROCS_PER_NODE processes of a node (TRELM_PROCS_PER_NODE), and the ranks that share a model must be on one"
}

# Handles USR1.
# shellcheck disable=SC2317,SC2329  # called by a trap
stop() {
    trap '' USR1
    stopped_by=USR1
    [[ -n $step_pid ]] || { say "SIGUSR1: before training"; return 0; }
    say "SIGUSR1: the ranks write a checkpoint"
    kill -USR1 "$step_pid" || true
}

# --- The job's history: RUN/slurm/history.jsonl, read below and by `trelm status`. ---
# note EVENT TEXT [EXIT CODE]: appends one line. What it says comes from no subshell: where a node is lost, Slurm signals
# all processes of the job, and the line would lack what a killed one was to print.
note() {
    local step now
    read_step
    TZ=UTC printf -v now '%(%Y-%m-%dT%H:%M:%SZ)T' -1
    # Start a new line if a full disk or a crash left the last one unfinished.
    [[ -z $(tail -c 1 "$state/history.jsonl" 2>/dev/null) ]] || echo >>"$state/history.jsonl"
    printf '{"job": "%s", "event": "%s", "step": %s, "restart": %s, "time": "%s", "nodes": "%s", "log": "%s", "text": "%s", "code": %s}\n' \
        "$SLURM_JOB_ID" "$1" "$step" "${SLURM_RESTART_COUNT:-0}" "$now" "$SLURM_JOB_NODELIST" \
        "${log//[\"\\]/}" "${2//[\"\\]/}" "${3:-null}" >>"$state/history.jsonl"
}

# Sets `step` to that of the last committed checkpoint, 0 if there is none.
read_step() {
    local text=""
    step=0
    { read -rd '' text <"$TRELM_OUT/checkpoints/latest.json" || true; } 2>/dev/null
    [[ ! $text =~ \"step\":\ *([0-9]+) ]] || step=${BASH_REMATCH[1]}
}

# Counts this start and gives up if a job keeps restarting without a new checkpoint. Starts on bad nodes do not count.
note_start() {
    local line step starts=0 steps=()
    log=$(job_field StdOut)
    read_step
    while ((${SLURM_RESTART_COUNT:-0})) && read -r line; do
        [[ $line == '{"job": "'"$SLURM_JOB_ID"'", '* ]] || continue
        if [[ $line =~ '"event": "start", "step": '([0-9]+)', "restart": '([0-9]+), ]]; then
            ((BASH_REMATCH[2])) || { starts=0; steps=(); }  # restart 0: lines above are of an older job of that number
            starts=$((starts + 1)) steps+=("${BASH_REMATCH[1]}")
        elif [[ $line == *'"text": "bad nodes: '* && ${#steps[@]} -gt 0 ]]; then
            unset 'steps[-1]'
        fi
    done < <(cat "$state/history.jsonl" 2>/dev/null)
    if ((starts > 10#$TRELM_MAX_RESTARTS)); then
        give_up "started $starts times, TRELM_MAX_RESTARTS is $TRELM_MAX_RESTARTS: submit it again if that is right"
    fi
    local stalls=$((10#$TRELM_MAX_STALLS))
    if ((${#steps[@]} >= stalls)) && [[ $(printf '%s\n' "${steps[@]: -stalls}" | sort -u) == "$step" ]]; then
        give_up "$stalls starts in a row ended without a checkpoint after step $step: fix the cause, see $log"
    fi
    note start ""
}

give_up() { note stalled "$1" 2; fail "$1"; }

# --- Rendezvous ---
# Sets `endpoint`, where the ranks meet. Uses Slurm's node addresses, because node names need not resolve.
set_rendezvous() {
    TRELM_NODE_ADDRESSES=$(ask_slurm scontrol show node -o "$SLURM_JOB_NODELIST" |
        sed -n 's/^NodeName=\([^ ]*\) .*NodeAddr=\([^ ]*\).*/\1=\2/p' | paste -sd' ')
    export TRELM_NODE_ADDRESSES  # each node looks up its own address
    local first
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    first=$(sed -n "s/^\(.* \)\?${nodes[0]}=\([^ ]*\).*/\2/p" <<<"$TRELM_NODE_ADDRESSES")
    # Derive the port from the job id, so that two jobs on one node do not collide.
    endpoint=$first:$((20000 + SLURM_JOB_ID % 10000))
    # Otherwise torchrun sets it to 1, too few threads for data preparation and for CPU runs.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > TRELM_PROCS_PER_NODE ? cpus / TRELM_PROCS_PER_NODE : 1))}
    # NCCL then explains its failures and is quiet otherwise.
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
}

# launch NAME COMMAND... -- ARGUMENT...: runs COMMAND with torchrun's arguments on all nodes and waits for it; leaves
# exit codes in $work/exit, one file per node, and a file rank-N of a rank that was asked to stop or met a mistake.
# torchrun has to be the Slurm task itself, because on most clusters a signal reaches nothing else. It passes signals to
# its workers and kills those still running after --shutdown-timeout, which must therefore be shorter than the 180 s of
# --signal.
launch() {
    local name=$1 command=() more
    read -rd '' -a more <<<"$TRELM_TORCHRUN_ARGS" || true
    shift
    while [[ $1 != -- ]]; do command+=("$1"); shift; done
    shift
    rm -rf "$work/exit" && mkdir "$work/exit"
    export TRELM_EXIT_FOLDER=$work/exit
    [[ -z $stopped_by ]] || return 0
    on_nodes -- "$python" -m "${command[@]}" -- \
        --nnodes="$SLURM_NNODES" --nproc-per-node="$TRELM_PROCS_PER_NODE" \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$name" --rdzv-endpoint="$endpoint" \
        --shutdown-timeout=160 \
        "${more[@]}" "$@" &
    step_pid=$!  # in the background, because bash runs traps only between commands
    [[ -z $stopped_by ]] || kill -USR1 "$step_pid" || true  # USR1 arrived between those two lines
    code=0
    wait "$step_pid" || code=$?
    while kill -0 "$step_pid" 2>/dev/null; do  # a trap interrupted `wait`
        code=0
        wait "$step_pid" || code=$?
    done
    step_pid=""
}

# --- Health check: find bad nodes before they waste an hour ---
check_nodes() {
    ((TRELM_HEALTH)) || return 0
    answers=$work/health bad=()
    local node ok
    rm -rf "$answers" && mkdir "$answers"
    launch health trelm_ds.cluster.health --answers "$answers" --gpus "$TRELM_CHECK_GPUS" --out "$TRELM_OUT" \
        --tensor-parallel "$degree" --
    [[ -z $stopped_by ]] || settle
    unless_ended
    ok=$(find "$answers" -name '*.ok' -printf '%f\n' | sed 's/\.ok$//')
    if [[ -s $state/bad_nodes ]]; then  # remove nodes that pass now: they were repaired since
        grep -vxF "$ok" "$state/bad_nodes" >"$state/bad_nodes.new" || true
        mv "$state/bad_nodes.new" "$state/bad_nodes"
    fi
    ((code)) || return 0
    for node in "${nodes[@]}"; do [[ -f $answers/$node.bad ]] && bad+=("$node"); done
    # A bad node's failure also kills healthy nodes before they answer, so a missing answer is suspicious only if no
    # node has reported itself as bad.
    if ((${#bad[@]} == 0)) && [[ -n $(find "$answers" -name '*.here') ]]; then
        for node in "${nodes[@]}"; do
            [[ -f $answers/$node.here ]] || { bad+=("$node"); echo "no answer" >"$answers/$node.bad"; }
        done
        ((${#bad[@]})) || requeue "the all-reduce across nodes failed, see above"
    fi
    ((${#bad[@]})) || finish 2 "not requeued: the health check itself failed, see $log (TRELM_HEALTH=0 skips it)"
    leave_bad_nodes
}

# Requeues without the bad nodes, or gives up if too few others are left.
leave_bad_nodes() {
    local node reasons="" others wanted
    for node in "${bad[@]}"; do reasons+="${reasons:+; }$node: $(<"$answers/$node.bad")"; done
    printf '%s\n' "${bad[@]}" >>"$state/bad_nodes"
    wanted=$(job_field ReqNodeList)  # set by --nodelist: Slurm would wait for these nodes forever
    wanted=${wanted:+$(scontrol show hostnames "$wanted" | { grep -xFf "$state/bad_nodes" || true; } | paste -sd,)}
    [[ -z $wanted ]] || give_up "$reasons; --nodelist asks for $wanted: repair them or leave them out"
    others=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u | grep -cvxFf "$state/bad_nodes" || true)
    ((others >= SLURM_NNODES)) || give_up "$reasons; partition $SLURM_JOB_PARTITION has $others nodes that \
$state/bad_nodes does not list: repair the others, or correct the requirements (TRELM_CHECK_GPUS, TRELM_MIN_...)"
    requeue "bad nodes: $reasons"
}

train() {
    local pretrain
    [[ -z $stopped_by ]] || settle
    pretrain=(-m trelm_ds pretrain --data "$TRELM_DATA" --out "$TRELM_OUT" "${settings[@]}")
    say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $SLURM_NNODES x $TRELM_PROCS_PER_NODE processes, meeting at $endpoint"
    say "$python ${pretrain[*]}"
    launch train trelm_ds.cluster.launcher -- "${pretrain[@]}"
    trained=1
}

# --- Ending ---
# Ends or requeues the job by the ranks' exit codes (docs/checkpoints.md). Reads them from files, because `wait` has been
# seen to return 0 for killed tasks.
settle() {
    local codes
    mapfile -t codes < <(cat "$work"/exit/* 2>/dev/null | sort -un)
    local all=" ${codes[*]} "
    if [[ $trained && $all == " 0 " && $(find "$work/exit" -name '[0-9]*' | wc -l) == "$SLURM_NNODES" ]]; then
        finish 0 "done"
    fi
    unless_ended
    if [[ $all == *" 2 "* ]]; then
        finish 2 "not requeued: a restart would not fix this mistake, see $log"
    elif [[ $all == *" 130 "* ]]; then
        finish 130 "stopped by its stop file"
    elif [[ -n $stopped_by ]]; then
        requeue "SIG$stopped_by"
    elif [[ $all == *" 75 "* ]]; then
        requeue "out of time (trainer.max_minutes)"
    elif [[ $all == *" 71 "* ]]; then
        requeue "training hung"
    else
        requeue "exit codes ${codes[*]:-none}, srun $code"
    fi
}

# Ends the script if Slurm has already ended the job: a cancelled job must not be requeued.
unless_ended() {
    local job_state
    job_state=$(job_field JobState)
    [[ -z $job_state || $job_state == RUNNING ]] || finish 143 "ended by Slurm: $job_state"
}

# finish CODE TEXT: notes the end and exits.
finish() {
    local step
    note end "$2" "$1"
    read_step
    say "$2; last checkpoint: step $step"
    exit "$1"
}

# requeue TEXT: puts the job back into the queue, excluding bad nodes; it resumes from its last sound checkpoint.
requeue() {
    if ((TRELM_REQUEUE == 0)); then
        local last=$((code ? code : 1))
        [[ -z $stopped_by ]] || last=138
        finish "$last" "not requeued (TRELM_REQUEUE=0): $1"
    fi
    local step
    note requeue "$1"
    read_step
    say "requeued: $1; last checkpoint: step $step"
    trap '' TERM  # Slurm sends it to a requeued script; the lines below must still run
    local before exclude
    before=$(job_field ExcNodeList)
    ask_slurm scontrol requeue "$job" || finish 1 "cannot be requeued: submit it again, it continues"
    [[ -s $state/bad_nodes ]] || exit 1
    exclude=$({ sort -u "$state/bad_nodes"; echo "$before"; } | sed '/^$/d' | paste -sd,)
    scontrol update "jobid=$job" "excnodelist=$exclude" || say "$exclude: could not be excluded"
    exit 1
}
