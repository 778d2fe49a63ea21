"""`python -m larmor` is the command line."""

from larmor.cli.main import main

if __name__ == "__main__":
    main()
