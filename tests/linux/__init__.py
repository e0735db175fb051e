"""Real kernels, end to end: through xl, xend and a domain process, as a user would."""
