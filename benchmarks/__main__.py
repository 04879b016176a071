"""`python -m benchmarks list`, `python -m benchmarks run NAME`, `python -m benchmarks table`."""

import importlib
import sys

from benchmarks import table
from benchmarks.gate import GateError

_MODULES = {
    "train_step": "train_step",
    "epoch": "epoch",
    "train_to_end": "train_to_end",
    "import": "importing",
    "import_size": "import_size",
    "load": "loading",
    "memory": "memory",
    "soak": "soak",
    "attention_write": "attention_write",
    "attention_read": "attention_read",
    "arrangements": "arrangements",
    "analysis": "analysis",
    "severity": "severity",
}


def main(arguments: list[str]) -> int:
    """List the benchmarks, run one, which prints its JSON line, or print the README's tables.

    Returns:
        0; 1 if a benchmark found that its arms do not compute the same; 2 if the arguments are wrong.
    """
    match arguments:
        case ["list"]:
            sys.stdout.write("\n".join(_MODULES) + "\n")
        case ["table"]:
            table.main()
        case ["run", name, *rest] if name in _MODULES:
            try:
                importlib.import_module(f"benchmarks.{_MODULES[name]}").main(rest)
            except GateError as error:
                sys.stderr.write(f"{error}\n")
                return 1
        case _:
            sys.stderr.write(
                f"usage: python -m benchmarks list | table | run NAME, with NAME one of {', '.join(_MODULES)}\n"
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
