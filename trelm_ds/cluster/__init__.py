"""What runs under Slurm needs: a launcher that says how it ended, node health, submission, status."""
