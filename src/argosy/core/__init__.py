"""Words every other package uses: ids, types, errors, config, clock, plugin table, metric and log names."""
