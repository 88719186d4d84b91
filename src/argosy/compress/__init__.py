"""Passes that make a model smaller or faster, and the search for the one a budget asks for."""
