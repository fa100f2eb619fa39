"""fhircm: care coordination between EHRs, payers and SMART apps, in FHIR."""
