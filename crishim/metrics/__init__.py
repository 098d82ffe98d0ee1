"""Figures for Prometheus: the only place of prometheus-client."""
