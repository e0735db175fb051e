"""What goes wrong with an image."""


class ImageError(Exception):
    """The image does not hold what it should; the message says what, in words for a user."""
