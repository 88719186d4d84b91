"""Launchers: they start processes somewhere and know which still live."""
