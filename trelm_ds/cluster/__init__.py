"""Running under Slurm: submission, status, node health, and a launcher that keeps the ranks' exit codes."""
