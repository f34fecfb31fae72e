"""`python -m freeprune` is the command `freeprune`, also where that is not on the path."""

from .engine.command.cli import main

if __name__ == "__main__":
    main(prog_name="freeprune")
