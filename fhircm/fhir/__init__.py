"""What FHIR R4 says: pure, without HTTP, SQL or a clock."""
