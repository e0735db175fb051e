"""xl: the command line. One module for each family of commands."""
