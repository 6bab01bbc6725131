"""``python -m foveal`` is ``foveal``, and runs where the command is not on the path; ``torchrun -m foveal`` too."""

import sys

from foveal.cli import main

if __name__ == "__main__":
    sys.exit(main())
