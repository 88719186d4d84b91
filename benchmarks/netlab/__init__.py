"""Emulated hosts on one machine: network namespaces around a switch, links with a rate and a delay that can be cut."""
