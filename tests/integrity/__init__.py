"""A long run against a virtual disk: what the guest wrote is on the host, and nothing else."""
