"""The hypervisor: what a trap, a hypercall or an event means to a domain."""
