"""From data sets as their authors distribute them to records."""
