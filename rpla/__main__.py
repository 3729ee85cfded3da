"""``python -m rpla``."""

from rpla.cli.main import main

main()
