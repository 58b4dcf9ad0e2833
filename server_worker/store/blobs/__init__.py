"""Large values beside a store: the seam and its folder (`folder`), and the store that uses it (`blobbed`)."""
