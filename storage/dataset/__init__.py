"""What lies in the store: a data set and its layout."""
