"""The `braid` command: one module per subcommand."""
