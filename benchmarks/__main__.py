"""`python -m benchmarks list`, `python -m benchmarks run NAME`, `python -m benchmarks table`."""

import importlib
import sys

from benchmarks import table

_MODULES = {
    "import": "importing",
    "load": "loading",
    "memory": "memory",
    "attention_write": "attention_write",
    "attention_read": "attention_read",
}


def main(arguments: list[str]) -> int:
    """List the benchmarks, run one, which prints its JSON line, or print the README's tables."""
    match arguments:
        case ["list"]:
            sys.stdout.write("\n".join(_MODULES) + "\n")
        case ["table"]:
            table.main()
        case ["run", name, *rest] if name in _MODULES:
            importlib.import_module(f"benchmarks.{_MODULES[name]}").main(rest)
        case _:
            sys.stderr.write(
                f"usage: python -m benchmarks list | table | run NAME, with NAME one of {', '.join(_MODULES)}\n"
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
