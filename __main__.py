"""`python -m freeprune` runs the command `freeprune`, also if that is not on the path."""

from .engine.command.cli import main

if __name__ == "__main__":
    main(prog_name="freeprune")
