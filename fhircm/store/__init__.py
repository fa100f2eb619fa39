"""The only SQL: versions, search rows, changes and timers in one transaction."""
