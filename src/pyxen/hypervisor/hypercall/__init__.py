"""Hypercalls: one module per hypercall or family, one table that dispatches and documents them."""
