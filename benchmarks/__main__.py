"""`python -m benchmarks list`, `python -m benchmarks run NAME`."""

import importlib
import sys

_MODULES = {"import": "importing", "load": "loading"}


def main(arguments: list[str]) -> int:
    """List the benchmarks, or run one, which prints its JSON line."""
    match arguments:
        case ["list"]:
            sys.stdout.write("\n".join(_MODULES) + "\n")
        case ["run", name, *rest] if name in _MODULES:
            importlib.import_module(f"benchmarks.{_MODULES[name]}").main(rest)
        case _:
            sys.stderr.write(f"usage: python -m benchmarks list | run NAME, with NAME one of {', '.join(_MODULES)}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
