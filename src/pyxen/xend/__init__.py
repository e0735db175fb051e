"""xend: the host daemon. It keeps the list of domains, hosts xenstored, and answers xl."""
