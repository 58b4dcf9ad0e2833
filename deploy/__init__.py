"""Programs that run SplitEasy: the local stack, and the nodes that it and the tests are made of."""
