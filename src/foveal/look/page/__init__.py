"""The page on which one moves over an image: served to a browser, or written into one file."""
