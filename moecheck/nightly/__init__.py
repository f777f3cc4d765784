"""One night: several commands in a row, compared with the nights before, and one exit code."""
