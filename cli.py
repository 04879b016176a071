"""Runs the command line from a checkout: `python cli.py train ...` is `vmapens train ...`."""

from vmapens.cli import main

if __name__ == "__main__":
    main()
