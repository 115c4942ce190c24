"""`python -m bsgen`: the command line, also from a checkout that is not installed."""

from bsgen.cli import main

if __name__ == "__main__":
    main()
