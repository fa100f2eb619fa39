"""Other systems: partners, pull and push over SMART on FHIR."""
