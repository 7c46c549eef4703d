"""`python -m associative_transformer` is `ait`."""

import sys

from associative_transformer.cli import main

sys.exit(main())
