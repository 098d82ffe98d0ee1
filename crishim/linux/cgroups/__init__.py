"""Control groups v1 and v2: layout, settings, their application, statistics, devices."""
