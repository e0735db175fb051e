"""The PV console: a ring in one page of the guest, shown on a pty, kept in a log."""
