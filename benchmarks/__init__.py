"""Scripts that measure speed and memory, and the reports that they wrote."""
