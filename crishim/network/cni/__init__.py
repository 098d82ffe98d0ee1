"""Pods' networks by CNI plugins: configurations, runs of plugins, and what is on record of them."""
