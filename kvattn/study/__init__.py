"""Runs that last: a study, who judges it, its folder, and what is learned from it."""
