"""The Unicorn engine: guest kernel at privilege level 1, guest user at 3, on QEMU's translator."""
