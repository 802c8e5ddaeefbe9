"""The commands: each module holds the options of one script and runs it."""
