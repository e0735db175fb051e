"""Guest images that a user can make without root: the demo, and the packages it is made from."""
