"""What a user can do: one module per command of `drcorl`, and the command line itself."""
