"""Reading, splitting and preparing data; the same preparation runs in training and in the served model."""
