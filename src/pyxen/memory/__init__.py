"""A domain's machine memory: frames, their types, and guest virtual addresses."""
