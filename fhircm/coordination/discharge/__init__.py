"""Discharge planning from the day of admission: docs/explanation/discharge-planning.md."""
