"""``python -m foveal.cli`` is ``foveal``."""

import sys

from foveal.cli import main

sys.exit(main())
