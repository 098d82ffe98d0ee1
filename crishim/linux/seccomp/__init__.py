"""Seccomp: profiles, and our own compiler from a profile to a filter program."""
