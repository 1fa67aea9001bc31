"""`python -m kvattn`."""

from kvattn.cli import main

if __name__ == "__main__":
    main()
