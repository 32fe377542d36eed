"""`imprint train` for clusters without the command on the path: same arguments."""

import sys

from imprint_jax.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
