"""What agents learn, how fast, and which settings matter."""
