"""Transitions of care: what admissions, transfers, discharges and emergency visits set going, and how it ends. docs/explanation/transitions.md"""
