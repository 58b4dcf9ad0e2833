"""What is trained: a body with its optimizer, its log, its snapshots and its owner, as one worker has it."""
