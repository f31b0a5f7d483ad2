"""What happens around the training on disks and hosts."""
