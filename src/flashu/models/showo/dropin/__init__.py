"""What answers the calls of the original authors' class."""
