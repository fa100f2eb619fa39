"""One longitudinal care plan, care team and goal list for a person, out of what all partners say. docs/explanation/longitudinal-plan.md"""
