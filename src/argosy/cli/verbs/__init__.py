"""What each command does; `cli/app.py` says how it is called."""
