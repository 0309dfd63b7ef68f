"""What a run of days needs: exact resumption, signals, and faults that end a run well."""
