"""`python -m imprint_jax` is `imprint`."""

from imprint_jax.cli import main

main()
