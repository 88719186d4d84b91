"""The commands. Objects are wired together here."""
