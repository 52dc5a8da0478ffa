"""The report of a run as one HTML page: what is read, how it is drawn, how it is laid out."""
