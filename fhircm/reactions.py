"""THE list: what happens by itself when a resource of a type changes, and what happens when a timer is due.

To add a workflow rule: write a function in `coordination/` and give it a line here. A reaction takes a change and returns operations;
the worker commits them (docs/decisions/reactions-return-operations.md).
"""
