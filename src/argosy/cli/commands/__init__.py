"""The commands: names, flags and their help. What a command does stands in `cli/verbs/`."""
