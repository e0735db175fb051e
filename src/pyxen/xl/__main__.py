"""`python -m pyxen.xl`."""

from pyxen.xl.main import main

raise SystemExit(main())
