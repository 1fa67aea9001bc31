"""`python -m kvattn`."""

from kvattn.cli.main import main

if __name__ == "__main__":
    main()
