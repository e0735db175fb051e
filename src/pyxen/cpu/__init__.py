"""CPU engines: what executes guest instructions. They know nothing of Xen's policy."""
