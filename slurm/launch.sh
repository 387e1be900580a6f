# What the scripts of this folder share: `launch VERB WORDS...` makes the environment, starts one task a device, and puts
# the job back into the queue if it was told to stop before it was done.
#
# `athanor submit` sets these from configs/cluster/NAME.yaml; by hand all of them may be left out:
#   ATHANOR_CODE         folder of the code that runs; else the one that sbatch was called in
#   ATHANOR_PYTHON       interpreter; else that of .venv, else python
#   ATHANOR_MODULES      modules to load
#   ATHANOR_ENVIRONMENT  file to source, such as a virtual environment's bin/activate
#   ATHANOR_CONTAINER    image: FILE.sif for apptainer, any other for pyxis
#   ATHANOR_REQUEUES     how often the job may go back into the queue

launch() {
    local code=${ATHANOR_CODE:-$SLURM_SUBMIT_DIR} python=python flags=() inside=() status job
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
    srun --kill-on-bad-exit=0 --wait=60 "${flags[@]}" bash -c 'trap "" USR1 TERM; exec "$@"' athanor \
        "${inside[@]}" "${ATHANOR_PYTHON:-$python}" -m athanor "$@"
    status=$?
    [ $status = 75 ] || exit $status

    # Told to stop, and saved. Requeuing would bring a cancelled job back, or disturb a restart of this one elsewhere.
    job=$(scontrol show job "$SLURM_JOB_ID") || exit $status
    if [[ $job != *JobState=RUNNING* || $job != *Restarts="${SLURM_RESTART_COUNT:-0} "* ]]; then
        exit $status
    elif [ "${SLURM_RESTART_COUNT:-0}" -ge "${ATHANOR_REQUEUES:-50}" ]; then
        echo "athanor: this job has been restarted ${SLURM_RESTART_COUNT:-0} times, as often as it may (cluster.slurm.requeues);" \
            "submit it again, and it goes on where it is" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
        echo "athanor: back in the queue" >&2
    else
        echo "athanor: this cluster does not requeue jobs; submit it again, and it goes on where it is" >&2
    fi
    exit $status
}
