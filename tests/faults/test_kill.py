"""SIGKILL at any point of the story: started again, it finishes, with nothing lost, nothing doubled, and nothing sent twice.

The EHR itself pulls the trigger: told the worker's process id, it kills it when a request arrives, before or after it has
acted on it. So every point at which the hub and a partner could disagree is met exactly, without a line of code in the product.
"""
