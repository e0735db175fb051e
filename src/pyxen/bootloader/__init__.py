"""Boot from the guest's own disk: what pygrub does, and how external boot loaders are run.

The image is hostile. It is read in a subprocess (`worker`) that holds an open descriptor and next
to no rights; `reader` is its other end: what comes from there is bounded and checked.
"""
