"""FHIR operations, a file each, and the list that routes them."""
