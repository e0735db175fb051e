"""xend with stand-in domain processes: run_xend.py STATE RUN READY_FD spare|alone COMMAND…"""

import asyncio
import logging
import sys
from pathlib import Path

from pyxen.errors import UserError
from pyxen.paths import Paths
from pyxen.toolstack.operations import Toolstack
from pyxen.xend.daemon import Xend


async def main():
    state, run, ready, spare, *command = sys.argv[1:]
    paths = Paths(Path(state), Path(run))
    await Xend(paths, Toolstack(), tuple(command), spare=spare == "spare").run(int(ready))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s %(message)s")
    try:
        asyncio.run(main())
    except UserError as error:
        raise SystemExit(str(error)) from None
