"""Has a change made any pruner worse?"""
