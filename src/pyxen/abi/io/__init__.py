"""The split-driver protocols: one module per header in public/io."""
