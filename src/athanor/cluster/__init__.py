"""Experiments as SLURM jobs: submitted, followed, cancelled. What happens within a job: `athanor.slurm`."""
