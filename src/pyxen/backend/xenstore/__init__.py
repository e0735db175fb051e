"""The guest's way to xenstore: its ring page on one side, xenstored's stream on the other."""
