"""Who may send what, and how much: checks before a request reaches a session."""
