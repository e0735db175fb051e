"""`python -m pyxen.cli`."""

from pyxen.cli.main import main

raise SystemExit(main())
