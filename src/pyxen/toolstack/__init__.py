"""What libxl is in Xen: create, destroy, shut down … It runs inside xend; xl sends operations."""
