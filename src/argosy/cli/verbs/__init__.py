"""What each command does; `cli/commands/` says how it is called."""
