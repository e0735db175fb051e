"""The block back end: what a guest's xen-blkfront talks to."""
