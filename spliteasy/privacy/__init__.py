"""Initial weights of head and tail that only the device knows, and the law by which it draws them."""
