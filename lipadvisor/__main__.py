"""``python -m lipadvisor``: the command line."""

from lipadvisor.cli import main

if __name__ == "__main__":
    main(prog_name="lipadvisor")
