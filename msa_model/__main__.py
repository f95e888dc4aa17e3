"""``python -m msa_model`` is ``msa``."""

import sys

from .cli import main

sys.exit(main())
