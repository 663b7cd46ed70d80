"""`python -m relmsg`: the command `relmsg`, where it is not on the PATH."""

from relmsg.cli.main import main

if __name__ == "__main__":
    main()
