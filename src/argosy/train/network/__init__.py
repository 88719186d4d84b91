"""Ranks on different hosts: how they meet, exchange numbers, send fewer of them, and exchange less often."""
