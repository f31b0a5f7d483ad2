"""What surrounds training on disks and hosts: the loop, checkpoints, metrics, pages, jobs."""
