"""`python -m rehydrator`."""

from rehydrator.cli import program

if __name__ == "__main__":
    program()
