"""Pods' networks: the embedded bridge with leases, NAT and published ports, and the contents of name files."""
