"""Placement decides which worker serves which shard, and what a worker does beside serving."""
