"""Python runs this at start when the directory is in PYTHONPATH: profiles domain processes.

The profile goes to $PYXEN_BENCH_PROFILE. A domain process ends by os._exit, which is where it is
written.
"""

import os
import sys

if "pyxen.domain" in sys.orig_argv and (_path := os.environ.get("PYXEN_BENCH_PROFILE")):
    import cProfile

    _profile = cProfile.Profile()
    _exit = os._exit

    def _write_and_exit(status: int) -> None:
        _profile.disable()
        _profile.dump_stats(_path or "")
        _exit(status)

    os._exit = _write_and_exit  # type: ignore[assignment]
    _profile.enable()
