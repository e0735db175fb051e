"""Back ends: the host's side of the guest's devices. One folder a device."""
