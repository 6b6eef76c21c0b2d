"""Run the command line: ``python -m trio_daq``."""

import sys

from trio_daq.cli import main

sys.exit(main())
