"""What runs inside the sandbox: `main.py`, a script for an isolated interpreter, which cannot import kvattn."""
