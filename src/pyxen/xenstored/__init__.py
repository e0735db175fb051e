"""Xenstore: the tree of keys through which domains and tools find each other."""
