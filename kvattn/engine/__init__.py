"""A compiled prompt, a plan, one engine that runs it, one capture that reads the rows out of it."""
