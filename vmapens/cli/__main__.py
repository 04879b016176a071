"""`python -m vmapens.cli` is the command, too."""

from vmapens.cli import main

main()
