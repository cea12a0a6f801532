"""The tuner: searches recipes for the cheapest that keeps a score, and writes them down with their evidence."""
