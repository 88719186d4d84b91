"""Prometheus, Alertmanager and Grafana: their files, their processes, and what an alert may bring about."""
