# What the scripts of this folder share: `launch VERB WORDS...` makes the environment, starts one task a device, starts
# them again if one was killed, and puts the job back into the queue if it was told to stop before it was done.
#
# `athanor submit` sets these from configs/cluster/NAME.yaml; by hand all of them may be left out:
#   ATHANOR_CODE         folder of the code that runs; else the one that sbatch was called in
#   ATHANOR_PYTHON       interpreter; else that of .venv, else python
#   ATHANOR_MODULES      modules to load
#   ATHANOR_ENVIRONMENT  file to source, such as a virtual environment's bin/activate
#   ATHANOR_CONTAINER    image: FILE.sif for apptainer, any other for pyxis
#   ATHANOR_REQUEUES     how often the job may go back into the queue
#   ATHANOR_RETRIES      how often tasks that a signal killed (for want of memory, say) begin again; else never

# Of an array's element: its SLURM_JOB_ID would not do, for the last one's is also the whole array's.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

still_runs() { # whether the job still runs here: it is not being cancelled, and has not been restarted elsewhere
    local shown
    shown=$(scontrol show job "$job") && [[ $shown == *JobState=RUNNING* && $shown == *Restarts="${SLURM_RESTART_COUNT:-0} "* ]]
}

node_lost() { # whether a node of the job does not answer; SLURM itself may learn of it only after minutes (SlurmdTimeout)
    [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] && still_runs &&
        ! timeout 60 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true >/dev/null 2>&1
}

launch() {
    local code=${ATHANOR_CODE:-$SLURM_SUBMIT_DIR} python=python flags=() inside=() status deaths=0
    [ ! -x .venv/bin/python ] || python=$PWD/.venv/bin/python
    export PYTHONPATH=$code/src${PYTHONPATH:+:$PYTHONPATH}
    [ -z "${ATHANOR_MODULES:-}" ] || module load $ATHANOR_MODULES || exit 2
    [ -z "${ATHANOR_ENVIRONMENT:-}" ] || { source "$ATHANOR_ENVIRONMENT" && python=python; } || exit 2
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || flags+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
    case ${ATHANOR_CONTAINER:-} in
        "") ;;
        *.sif) python=python inside=(apptainer exec --nv "$ATHANOR_CONTAINER") ;;
        *) python=python flags+=("--container-image=$ATHANOR_CONTAINER" "--container-mounts=$PWD,$code" "--container-workdir=$PWD") ;;
    esac

    # A task that ends takes the others with it after a minute, not at once: they may be ending too. Until Python handles
    # the two signals they are ignored, for they would kill it.
    export ATHANOR_HUNG=$PWD/.hung-$job
    while true; do
        rm -f "$ATHANOR_HUNG"
        srun --kill-on-bad-exit=0 --wait=60 "${flags[@]}" bash -c 'trap "" USR1 TERM; exec "$@"' athanor \
            "${inside[@]}" "${ATHANOR_PYTHON:-$python}" -m athanor "$@"
        status=$?
        [ ! -e "$ATHANOR_HUNG" ] || { rm -f "$ATHANOR_HUNG"; status=75; break; } # ranks that did not answer were killed
        case $status in 138 | 143) status=75 ;; esac # killed by USR1 or TERM: told to stop before it handled them, even by bash
        [ $status -gt 128 ] && [ $deaths -lt "${ATHANOR_RETRIES:-0}" ] && still_runs || break
        echo "athanor: killed by signal $((status - 128)); going on ($((++deaths)) of $ATHANOR_RETRIES)" >&2
    done
    case $status in
        75) ;;
        0 | 2) exit $status ;;
        *) node_lost || exit $status; status=75; echo "athanor: a node of this job does not answer" >&2 ;;
    esac

    # Told to stop, and saved, or ended where it hung, or a node is lost. Requeuing would bring a cancelled job back, or disturb a restart of this one elsewhere.
    if ! still_runs; then
        exit $status
    elif [ "${SLURM_RESTART_COUNT:-0}" -ge "${ATHANOR_REQUEUES:-50}" ]; then
        echo "athanor: this job has been restarted ${SLURM_RESTART_COUNT:-0} times, as often as it may (cluster.slurm.requeues);" \
            "submit it again, and it goes on where it is" >&2
    elif scontrol requeue "$job"; then
        echo "athanor: back in the queue" >&2
    else
        echo "athanor: this cluster does not requeue jobs; submit it again, and it goes on where it is" >&2
    fi
    exit $status
}
