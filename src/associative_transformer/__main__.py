"""Run `ait` as `python -m associative_transformer`."""

import sys

from associative_transformer.cli import main

sys.exit(main())
