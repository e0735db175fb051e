"""`python -m pyxen.xend`: put the daemon together and run it."""

import sys

from pyxen.xend.main import main

raise SystemExit(main(sys.argv[1:]))
