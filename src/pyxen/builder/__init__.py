"""Building a domain: kernel image formats, Xen's ELF notes, the PV layout, kernel symbols."""
