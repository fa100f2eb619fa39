"""Terminology: what codes mean, which of them belong together, and what they are elsewhere. Pure: everything needed is gathered before.

https://hl7.org/fhir/R4/terminology-module.html
"""
